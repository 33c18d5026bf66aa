"""The part of the page about models that were trained whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tables import head, relative, rows_of

ABOUT_TRAINED = """## {title}

```bash
python benchmarks/rank1/trained.py --study benchmarks/rank1/{name}.toml --output results.json
python benchmarks/rank1/trained.py --study benchmarks/rank1/{name}.toml --output results.json --only default   # one row anew
```

`{model}`, trained whole by open_clip's own training: whole epochs of at least {steps} steps, of {batch_size} pairs,
{test_seeds} seeds, the same initial weights, steps and learning rate for all, which is the best for the *baseline* on
validation. Gains are relative to in-batch negatives, with the 95 % interval of a paired t test over seeds; those
without 0 are bold. *False* are the false negatives of an anchor in a batch (pairs of one item), before and after removal;
*removed* is the share of all incorrect pairs that is removed, and how many of these are false. Times of a step are the median
of a short training (`--times`), on a machine that did little else.
"""

TITLES = {
    "scratch": "From scratch",
    "dense": "From scratch with large batches",
    "finetune": "Fine-tuning of pretrained towers",
}


def title_of(study: Mapping[str, Any]) -> str:
    """Return the title of a study."""
    return TITLES.get(study["name"], study["name"])


def trained_section(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of the section of a study."""
    study = result["study"]
    yield ABOUT_TRAINED.format(**study, title=title_of(study))
    for name, data in result["data"].items():
        size = study["data"][name].get("batch_size", study["batch_size"])
        runs = {method: [run for run in data["runs"] if run["method"]["name"] == method] for method in data["summaries"]}
        more = {
            "false": {method: _false(each) for method, each in runs.items()},
            "removed": {method: _removed(each, size) for method, each in runs.items()},
            "ms a step": {m: f"{1000 * seconds:.0f}" for m, seconds in data.get("seconds_per_step", {}).items()},
            "MiB": {m: f"{max(run['peak_memory_mib'] for run in each):.0f}" for m, each in runs.items()},
        }
        rates = study["data"][name].get("learning_rates", study["learning_rates"])
        yield head(name, data, rates, steps=data["runs"][0]["steps"])
        yield rows_of({method: relative(data, method) for method in data["summaries"]}, more)


def _mean(runs: list[dict[str, Any]], name: str) -> float | None:
    values = [run[name] for run in runs if run.get(name) is not None]
    return sum(values) / len(values) if len(values) == len(runs) else None


def _false(runs: list[dict[str, Any]]) -> str:
    """Return the false negatives of an anchor, and how many are left, where some are removed."""
    before, after = (_mean(runs, f"false_negatives_{name}") for name in ("per_anchor", "kept_per_anchor"))
    if before is None or after is None:
        return ""
    return f"{before:.2f}" if before == after else f"{before:.2f}, {after:.2f} left"


def _removed(runs: list[dict[str, Any]], size: int) -> str:
    """Return the share of pairs that is removed, and the share of these that are false negatives, in percent."""
    share, before, after = (
        _mean(runs, name) for name in ("removed_share", "false_negatives_per_anchor", "false_negatives_kept_per_anchor")
    )
    if not share or before is None or after is None:
        return ""
    return f"{100 * share:.1f} %, {100 * (before - after) / (share * (size - 1)):.1f} % of these false"
