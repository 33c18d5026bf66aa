"""Write docs/study.md and its plots from the result files of the Rank@1 study: python benchmarks/rank1/page.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DOCS = HERE.parents[1] / "docs"
HEADS = "rank1-heads.json"
PARTS = "rank1-parts.json"
TRAINED = ("rank1-dense.json", "rank1-finetune.json", "rank1-scratch.json")
INTRODUCTION = HERE / "introduction.md"
"""What the figures say, written by hand."""

ABOUT_HEADS = """## Heads on frozen features

```bash
python benchmarks/rank1/heads.py --output results.json
```

Linear heads on frozen features, trained in seconds: EfficientNet-Lite0 of the pictures, MiniLM of the texts, {dim}
dimensions shared, {steps} steps of {batch_size} pairs where nothing else is said. It screens methods; it does not show what
happens when the towers themselves are trained. The learning rate is the best for the *baseline*; each method then has the
best of its candidates, at {validation_seeds} seed of validation. On the test: {test_seeds} seeds, the same steps, batches,
initial heads and rate for all.

Gains are relative to in-batch negatives, in percent of their figure; intervals are 95 % of a bootstrap over seeds and
queries, paired; those without 0 are bold. Of {n_methods} methods, one or two a table are bold by chance. `multi_positive`
and `id_mask` know the item of each listing, which the others do not. The methods ending in `_held` hold the temperature
instead of learning it.
"""

ABOUT_VALIDATION = """### What was tried

Gain in text-to-image Rank@1 on *validation*, in percent, of every candidate that was looked at there, the best on average
first. At {validation_seeds} seed a few percent are noise.
"""

ABOUT_TRAINED = """## {title}

```bash
python benchmarks/rank1/trained.py --study benchmarks/rank1/{name}.toml --output results.json
```

`{model}`, trained whole by open_clip's own training: {steps} steps of {batch_size} pairs, {test_seeds} seeds, the same
initial weights, steps and learning rate for all, which is the best for the *baseline* on validation. Gains are relative to
in-batch negatives, with the 95 % interval of a paired t test over seeds; those without 0 are bold.
"""

ABOUT_PARTS = """## {title}

```bash
python benchmarks/rank1/heads.py --study benchmarks/rank1/parts.toml --output results.json
```
{about}
"""

TITLES = {
    "scratch": "From scratch",
    "dense": "From scratch with large batches",
    "finetune": "Fine-tuning of pretrained towers",
}

FIGURES = ("text_to_image_rank_1", "text_to_image_rank_10", "image_to_text_rank_1")
COLUMNS = ("method", "Rank@1", "gain [95 %]", "gain at 10 [95 %]", "image to text [95 %]", "ms a step")


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION.read_text()]
    for file in sorted(RESULTS.glob(f"*/{HEADS}")):
        result = json.loads(file.read_text())
        study = result["study"]
        parts.append(ABOUT_HEADS.format(**study, n_methods=len(study["methods"]) - 1))
        parts += ["### All at a glance\n\nGain in text-to-image Rank@1, in percent.\n", _overview(result["data"])]
        parts += [ABOUT_VALIDATION.format(**study), _validation(result["data"])]
        for name, data in result["data"].items():
            rows = [_row(method, one, one["seconds_per_step"]) for method, one in _ordered(data["methods"])]
            picture = f"![gain in Rank@1 by method](images/study/{file.parent.name}-{name}.svg)\n"
            parts += [_head(name, data), _table(rows), _candidates(data), picture]
    for file in sorted(RESULTS.glob(f"*/{PARTS}")):
        result = json.loads(file.read_text())
        parts += [
            ABOUT_PARTS.format(**result["study"]),
            "Gain in text-to-image Rank@1, in percent.\n",
            _overview(result["data"]),
        ]
        parts.append("The same at Rank@10.\n\n" + _overview(result["data"], FIGURES[1]))
        told = result["study"]["methods"]
        parts.append("Methods: " + "; ".join(f"{name}: `{spec}`" for name, (spec,) in told.items() if name != spec) + ".\n")
        rows = [[name, *(str(one[key]) for key in ("samples", "queries", "lr"))] for name, one in result["data"].items()]
        parts.append(_table(rows, ("data", "listings", "queries", "learning rate")))
    for file in sorted(path for name in TRAINED for path in RESULTS.glob(f"*/{name}")):
        result = json.loads(file.read_text())
        parts.append(
            ABOUT_TRAINED.format(**result["study"], title=TITLES.get(result["study"]["name"], result["study"]["name"]))
        )
        for name, data in result["data"].items():
            figures = {method: _relative(data, method) for method in data["summaries"]}
            rows = [_row(method, one, _seconds(data["runs"], method)) for method, one in _ordered(figures)]
            parts += [_head(name, data), _table(rows)]
    return "\n".join(parts)


def _head(name: str, data: dict[str, Any]) -> str:
    return (
        f"### {name.capitalize()}\n\n{data['samples']} listings, {data['near_duplicates_per_anchor']:.2f} others of the same "
        f"item for each in a batch; {data['queries']} queries; learning rate {data['lr']:g}.\n"
    )


def _table(rows: Iterable[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)) + "\n"


def _overview(data: dict[str, Any], figure: str = FIGURES[0]) -> str:
    """Return the gain of every method on every data set, the best on average first."""
    gains = {
        method: [one["methods"][method][figure] for one in data.values()] for method in next(iter(data.values()))["methods"]
    }
    rows = [
        [_name(method), *(_marked(f"{100 * one['gain']:+.0f}", one) for one in found)]
        for method, found in sorted(gains.items(), key=lambda item: -sum(one["gain"] for one in item[1]))
    ]
    return _table(rows, ("method", *data))


def _validation(data: dict[str, Any]) -> str:
    """Return the gain of every candidate on the validation of every data set."""
    gains = {spec: [one["validation"][spec] for one in data.values()] for spec in next(iter(data.values()))["validation"]}
    rows = [
        [_name(spec), *(f"{100 * gain:+.0f}".replace("-", "\N{MINUS SIGN}") for gain in found)]
        for spec, found in sorted(gains.items(), key=lambda item: -sum(item[1]))
    ]
    return _table(rows, ("candidate", *data))


def _name(method: str) -> str:
    return f"**{method}**" if method == "in_batch" else f"`{method}`"


def _ordered(methods: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(methods.items(), key=lambda item: -item[1][FIGURES[0]]["mean"])


def _row(method: str, figures: dict[str, Any], seconds: float) -> list[str]:
    first = figures[FIGURES[0]]
    gains = ["" if method == "in_batch" else _gain(figures[name]) for name in FIGURES]
    return [_name(method), f"{100 * first['mean']:.1f} ± {100 * first['spread']:.1f}", *gains, f"{1000 * seconds:.0f}"]


def _gain(figure: dict[str, float]) -> str:
    return _marked(f"{100 * figure['gain']:+.1f} [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]", figure)


def _marked(text: str, figure: dict[str, float]) -> str:
    """Return a gain in bold where its interval does not hold 0; it is not broken into lines."""
    unbroken = text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")
    return f"**{unbroken}**" if figure["low"] > 0 or figure["high"] < 0 else unbroken


def _seconds(runs: list[dict[str, Any]], method: str) -> float:
    """Return the least seconds a step of a method's runs: whatever else a machine does only adds to them."""
    return min(run["seconds_per_step"] for run in runs if run["method"]["name"] == method)


def _relative(data: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the figures of a method of a comparison, with the differences as shares of the baseline's mean."""
    figures = {}
    for name in FIGURES:
        one, base = data["summaries"][method][name], data["summaries"]["in_batch"][name]["mean"]
        found = {"mean": one["mean"], "spread": one["spread"]}
        if method != "in_batch":
            difference = data["differences"][method][name]
            found |= {key: difference[of] / base for key, of in (("gain", "mean"), ("low", "low"), ("high", "high"))}
        figures[name] = found
    return figures


def _candidates(data: dict[str, Any]) -> str:
    chosen = [f"{name}: `{one['candidate']}`" for name, one in data["methods"].items() if one["candidate"] != name]
    return "Chosen on validation: " + "; ".join(chosen) + ".\n"


def plot(data: dict[str, Any], target: Path) -> None:
    """Draw the gain in Rank@1 of each method with its interval."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "clip-negatives"  # the same file every time
    rows = [(name, one[FIGURES[0]]) for name, one in reversed(_ordered(data["methods"]))]
    figure = Figure(figsize=(7, 0.24 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for place, (name, one) in enumerate(rows):
        better = "C2" if one["low"] > 0 else "C3" if one["high"] < 0 else "0.5"
        axes.plot([100 * one["low"], 100 * one["high"]], [place, place], color=better, lw=2)
        axes.plot(100 * one["gain"], place, "o", color=better, label=name, ms=4)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_xlabel("gain in text-to-image Rank@1 over in-batch negatives, %")
    axes.grid(axis="x", alpha=0.3)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    for file in RESULTS.glob(f"*/{HEADS}"):
        for name, data in json.loads(file.read_text())["data"].items():
            plot(data, DOCS / "images" / "study" / f"{file.parent.name}-{name}.svg")
    (DOCS / "study.md").write_text(page())
