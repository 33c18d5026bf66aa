"""Write docs/study.md and its plots from the result files of the Rank@1 study: python benchmarks/rank1/page.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plots import plot_densities, plot_gains
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
"""Studies of heads whose data sets differ in one thing, and their results."""

COSTS = "rank1-costs.json"
PAIRS = "rank1-pairs.json"
GRADIENTS = "rank1-gradients.json"
TRAINED = ("rank1-dense.json", "rank1-finetune.json", "rank1-scratch.json")
INTRODUCTION = HERE / "introduction.md"
"""What the figures say, written by hand."""

ABOUT_HEADS = """## Heads on frozen features

```bash
python benchmarks/rank1/heads.py --output results.json
python benchmarks/rank1/heads.py --output results.json --only glofnd   # one row anew
```

Linear heads on frozen features, trained in seconds: EfficientNet-Lite0 of the pictures, MiniLM of the texts, {dim}
dimensions shared, {steps} steps of {batch_size} pairs where nothing else is said. It screens methods; it does not show what
happens when the towers themselves are trained. The learning rate is the best for the *baseline*; each method then has the
best of its candidates, at {validation_seeds} seed of validation. On the test: {test_seeds} seeds, the same steps, batches,
initial heads and rate for all.

Gains are relative to in-batch negatives, in percent of their figure; intervals are 95 % of a bootstrap over seeds and
queries, paired; those without 0 are bold. Of {n_methods} methods, one or two a table are bold by chance. `multi_positive`
and `id_mask` know the item of each listing, which the others do not. The methods ending in `_held` hold the temperature
instead of learning it. *Temperature* is that at the end. *ms a step* is time of one processor, *MiB* the peak of the process,
data and imports and all, both from `python benchmarks/rank1/costs.py`, which measures every row in a process of its own.
"""

ABOUT_VALIDATION = """### What was tried

Gain in text-to-image Rank@1 on *validation*, in percent, of every candidate that was looked at there, the best on average
first. At {validation_seeds} seed a few percent are noise.
"""

ABOUT_DEFAULT = """## {title}

```bash
python benchmarks/rank1/heads.py --study benchmarks/rank1/default.toml --output results.json
```
{about}
"""

ABOUT_PAIRS = """## Which pairs

```bash
python benchmarks/rank1/pairs.py --output results.json
```

What the batches and the log-weights of a method make of the pairs of the data that is trained on, before any training.
*False* are the incorrect pairs of an anchor in a batch that are of one item (parts and stamps: of one picture or text);
*removed* are its pairs that are removed; *weight* is the mean weight of a false one, removed ones counting 0, as a multiple of
that of a pair that is kept.
"""

ABOUT_GRADIENTS = """## Where the gradient goes

```bash
python benchmarks/rank1/gradients.py --output results.json
```

Heads are trained with in-batch negatives; at the start, midway and at the end every method is asked what it would do next,
on the same heads and the same random batches ({seeds} seeds). What pushes incorrect pairs apart is the positive part of the
gradient to their logits. *Misled* is the share of that push that falls on false negatives; *push* is all of it at the end,
as a multiple of that of in-batch negatives; *agreement* is the cosine between the gradient to the heads and that of a loss
that knows the items and leaves their pairs out.

False negatives are few, but they come to hold most of the gradient: they are what the model cannot tell apart. The default
lowers their share little, as the true negatives that hold the rest are alike too, and weighed down nearly as much. To
remove pairs by the similarity of clusters rids the gradient of them, and of most of the rest: where near-duplicates are
many, what is left agrees the least with the loss that knows. Weights that fall to 0 for the most similar samples (`weight`)
agree with it the most there. On *few* nothing is false, and yet methods whose gradients are far from that of in-batch
negatives gain there: that gain has another cause than fewer false negatives.
"""

ABOUT_VARIED = """## {title}

```bash
python benchmarks/rank1/heads.py --study benchmarks/rank1/{file} --output results.json
```
{about}
"""


def found(name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the result files of a name, of each machine."""
    for file in sorted(RESULTS.glob(f"*/{name}")):
        yield file, json.loads(file.read_text())


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION.read_text()]
    trained = [result for name in TRAINED for _, result in found(name)]
    for file, result in found(HEADS):
        parts.append(targets(result["data"], {title_of(one["study"]): one["data"] for one in trained}))
        parts += [section for _, pairs in found(PAIRS) for section in (ABOUT_PAIRS, pairs_table(pairs["data"]))]
        for _, gradients in found(GRADIENTS):
            parts += [ABOUT_GRADIENTS.format(seeds=gradients["seeds"]), gradients_table(gradients["data"])]
        parts += list(_heads(file.parent.name, result))
    for _, result in found(DEFAULT):
        parts += [ABOUT_DEFAULT.format(**result["study"]), validation(result["data"], mean=True)]
    for file, name in VARIED.items():
        for path, result in found(name):
            parts += list(_varied(file, result))
            if file == DENSITY:
                parts.append(f"![gain by density](images/study/{path.parent.name}-{Path(file).stem}.svg)\n")
    for result in trained:
        parts += list(trained_section(result))
    return "\n".join(parts)


def _heads(machine: str, result: dict[str, Any]) -> Iterator[str]:
    study, data = result["study"], result["data"]
    file = RESULTS / machine / COSTS
    costs = json.loads(file.read_text())["data"] if file.exists() else {}
    yield ABOUT_HEADS.format(**study, n_methods=max(len(one["methods"]) for one in data.values()) - 1)
    yield "### All at a glance\n\nGain in text-to-image Rank@1, in percent.\n"
    yield overview(data)
    yield ABOUT_VALIDATION.format(**study)
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
    yield ABOUT_VARIED.format(**result["study"], file=file)
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
    """Yield what a method gains over another than the baseline."""
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
