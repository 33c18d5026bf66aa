"""Write docs/study.md and its plots from the result files of the Rank@1 study: python benchmarks/rank1/page.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from choice_tables import choices_section, heads_and_towers
from plots import plot_densities, plot_gains
from sections import sections
from tables import BASELINE, FIGURES, gain, gradients_table, head, overview, pairs_table, rows_of, table, validation
from targets import targets
from trained_tables import title_of, trained_section

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DOCS = HERE.parents[1] / "docs"
HEADS = "rank1-heads.json"
DEFAULT = "rank1-default.json"
DENSITY = "density.toml"
VARIED = {"parts.toml": "rank1-parts.json", DENSITY: "rank1-density.json"}
"""Studies of heads whose data sets differ in one property, and their results."""

COSTS = "rank1-costs.json"
PAIRS = "rank1-pairs.json"
GRADIENTS = "rank1-gradients.json"
CHOICES, EQUAL = "rank1-choices.json", "rank1-equal.json"
TRAINED = ("rank1-dense.json", "rank1-finetune.json", "rank1-scratch.json")
INTRODUCTION = HERE / "introduction.md"  # discussion of the figures, written by hand
ABOUT = sections(HERE / "sections.md")


def found(name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the result files of this name of each machine."""
    for file in sorted(RESULTS.glob(f"*/{name}")):
        yield file, json.loads(file.read_text())


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION.read_text()]
    trained = [result for name in TRAINED for _, result in found(name)]
    equal = next((result for _, result in found(EQUAL)), None)
    parts += [part for _, result in found(CHOICES) for part in choices_section(result, equal, ABOUT)]
    for file, result in found(HEADS):
        parts += heads_and_towers(result, trained, ABOUT["towers"])
        parts.append(targets(result["data"], {title_of(one["study"]): one["data"] for one in trained}))
        parts += [section for _, pairs in found(PAIRS) for section in (ABOUT["pairs"], pairs_table(pairs["data"]))]
        for _, gradients in found(GRADIENTS):
            parts += [ABOUT["gradients"].format(seeds=gradients["seeds"]), gradients_table(gradients["data"])]
        parts += list(_heads(file.parent.name, result))
    for _, result in found(DEFAULT):
        parts += [ABOUT["default"].format(**result["study"]), validation(result["data"], mean=True)]
    for file, name in VARIED.items():
        for path, result in found(name):
            parts += list(_varied(file, result))
            if file == DENSITY:
                parts.append(f"![gain by density](images/study/{path.parent.name}-{Path(file).stem}.svg)\n")
    for result in trained:
        parts += list(trained_section(result, ABOUT["trained"]))
    return "\n".join(parts)


def _heads(machine: str, result: dict[str, Any]) -> Iterator[str]:
    study, data = result["study"], result["data"]
    file = RESULTS / machine / COSTS
    costs = json.loads(file.read_text())["data"] if file.exists() else {}
    yield ABOUT["heads"].format(**study, n_methods=max(len(one["methods"]) for one in data.values()) - 1)
    yield "### All at a glance\n\nGain in text-to-image Rank@1, in percent.\n"
    yield overview(data)
    yield ABOUT["validation"].format(**study)
    yield validation(data)
    for name, one in data.items():
        yield head(name, one, study["data"][name].get("learning_rates", study["learning_rates"]))
        yield _rows(one["methods"], costs.get(name, {}))
        yield from _compared(one["methods"])
        chosen = [f"{method}: `{row['candidate']}`" for method, row in one["methods"].items() if row["candidate"] != method]
        yield "Chosen on validation: " + "; ".join(chosen) + ".\n"
        yield f"![gain in Rank@1 by method](images/study/{machine}-{name}.svg)\n"


def _varied(file: str, result: dict[str, Any]) -> Iterator[str]:
    data, told = result["data"], result["study"]["methods"]
    yield ABOUT["varied"].format(**result["study"], file=file)
    yield "Gain in text-to-image Rank@1, in percent.\n"
    yield overview(data)
    yield "The same at Rank@10.\n\n" + overview(data, FIGURES[1])
    yield "Methods: " + "; ".join(f"{name}: `{spec}`" for name, (spec,) in told.items() if name != spec) + ".\n"
    yield table(
        [
            [
                *(name, str(one["samples"]), str(one["queries"]), f"{one['near_duplicates_per_anchor']:.2f}"),
                *(f"{one['lr']:g}", f"{100 * one['methods'][BASELINE][FIGURES[0]]['mean']:.1f}"),
                f"{one['clustering_seconds']:.1f}",
            ]
            for name, one in data.items()
        ],
        ("data", "listings", "queries", "false", "learning rate", "Rank@1 of in_batch, %", "clustering, s"),
    )


def _rows(methods: Mapping[str, Any], costs: Mapping[str, Any]) -> str:
    """Return the table of a data set of heads."""
    more = {
        "temperature": {name: f"{row['temperature']:.3f}" for name, row in methods.items() if "temperature" in row},
        "ms a step": {name: f"{cost['cpu_ms']:.0f}" for name, cost in costs.items()},
        "MiB": {name: f"{cost['peak_memory_mib']:.0f}" for name, cost in costs.items()},
    }
    return rows_of(methods, more)


def _compared(methods: Mapping[str, Any]) -> Iterator[str]:
    """Yield the gains over another method than the baseline."""
    for name, row in methods.items():
        for key, figures in row.items():
            if key.startswith("over_"):
                over = [f"{gain(figures[figure])} {what}" for figure, what in zip(FIGURES, WHAT, strict=True)]
                yield f"`{name}` over `{key.removeprefix('over_')}`: {', '.join(over)}, in percent.\n"


WHAT = ("at Rank@1", "at Rank@10", "from image to text")


if __name__ == "__main__":
    plots = DOCS / "images" / "study"
    for path, result in found(HEADS):
        for name, data in result["data"].items():
            plot_gains(data, plots / f"{path.parent.name}-{name}.svg")
    for path, result in found(VARIED[DENSITY]):
        plot_densities(result["data"], plots / f"{path.parent.name}-{Path(DENSITY).stem}.svg")
    (DOCS / "study.md").write_text(page())
