"""The section of the page about trained models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tables import folded, head, relative, rows_of

TITLES = {"scratch": "From scratch", "dense": "From scratch with large batches", "finetune": "Fine-tuning of pretrained towers"}


def title_of(study: Mapping[str, Any]) -> str:
    """Return the title of a study."""
    return TITLES.get(study["name"], study["name"])


def trained_section(result: Mapping[str, Any], about: str) -> Iterator[str]:
    """Yield the parts of the section of a study."""
    study = result["study"]
    yield about.format(**study, title=title_of(study))
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
        rows = rows_of({method: relative(data, method) for method in data["summaries"]}, more)
        yield folded(f"All figures of {name}", rows)


def _mean(runs: list[dict[str, Any]], name: str) -> float | None:
    values = [run[name] for run in runs if run.get(name) is not None]
    return sum(values) / len(values) if len(values) == len(runs) else None


def _false(runs: list[dict[str, Any]]) -> str:
    """Return the false negatives of an anchor, and how many remain if some are removed."""
    before, after = (_mean(runs, f"false_negatives_{name}") for name in ("per_anchor", "kept_per_anchor"))
    if before is None or after is None:
        return ""
    return f"{before:.2f}" if before == after else f"{before:.2f}, {after:.2f} left"


def _removed(runs: list[dict[str, Any]], size: int) -> str:
    """Return the share of removed pairs, and the share of false negatives among them, in percent."""
    share, before, after = (
        _mean(runs, name) for name in ("removed_share", "false_negatives_per_anchor", "false_negatives_kept_per_anchor")
    )
    if not share or before is None or after is None:
        return ""
    return f"{100 * share:.1f} %, {100 * (before - after) / (share * (size - 1)):.1f} % of these false"
