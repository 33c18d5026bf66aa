"""Write docs/study.md, docs/study/ and their plots from the result files of the study: python benchmarks/rank1/page.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import answers
import plots
from choice_tables import HELD, fixed_table, gains_table, heads_and_towers, regret_table
from tables import BASELINE, FIGURES, folded, gain, gradients_table, head, overview, pairs_table, rows_of, table, validation
from targets import targets
from trained_tables import title_of, trained_section

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DOCS = HERE.parents[1] / "docs"
HEADS = "rank1-heads.json"
COSTS = "rank1-costs.json"
GRADIENTS = "rank1-gradients.json"
TRAINED = ("rank1-dense.json", "rank1-finetune.json", "rank1-scratch.json")
NAMES = ("heads", "default", "parts", "density", "costs", "pairs", "gradients", "choices", "equal")
QUESTIONS = {
    "choosing": "Does choosing on your own data work?",
    "temperature": "How much does the temperature do?",
    "heads": "Which method gains on frozen features?",
    "trained": "Do the gains carry over to whole models?",
    "pairs": "Which pairs does a method remove?",
    "gradients": "Where does the gradient go?",
    "parts": "Which part of the default does the work?",
    "density": "Do more near-duplicates in a batch make a larger difference?",
    "default": "Which default?",
}
Results = dict[str, Any]
"""Content of each result file by its name; trained models are a list under ``trained``."""


def results() -> Results:
    """Return the results of the study; a file that is missing is left out."""
    files = {name: sorted(RESULTS.glob(f"*/rank1-{name}.json")) for name in NAMES}
    read = {name: json.loads(found[0].read_text()) for name, found in files.items() if found}
    trained = [json.loads(file.read_text()) for name in TRAINED for file in sorted(RESULTS.glob(f"*/{name}"))]
    return read | ({"trained": trained} if trained else {})


def pages() -> dict[str, str]:
    """Return the pages as Markdown, by file name below docs."""
    read = results()
    fields = {
        question: _FIELDS[question](read)
        for question in QUESTIONS
        if question in read
        or (question == "temperature" and "choices" in read)
        or (question == "choosing" and "choices" in read)
    }
    made = {f"study/{question}.md": _text(question).format(**given) for question, given in fields.items()}
    if set(fields) == set(QUESTIONS):
        made["study.md"] = _text("study").format(**_first_screen(read, fields))
        made["study/protocol.md"] = _text("protocol")
    return made


def draw(target: Path) -> None:
    """Write the plots of all pages."""
    read = results()
    heads, choices = read["heads"]["data"], read["choices"]["data"]
    trained = {title_of(one["study"]): one["data"] for one in read["trained"]}
    plots.plot_answer(heads, trained, target / "answer.svg")
    plots.plot_regret(choices, target / "regret.svg")
    plots.plot_temperature(choices, HELD, target / "temperature.svg")
    plots.plot_heads(heads, target / "heads.svg")
    plots.plot_trained(heads, trained, target / "trained.svg")
    plots.plot_pairs(read["pairs"]["data"], target / "pairs.svg")
    plots.plot_gradients(read["gradients"]["data"], target / "gradients.svg")
    plots.plot_gains(read["parts"]["data"]["category"], target / "parts.svg")
    plots.plot_densities(read["density"]["data"], target / "density.svg")
    plots.plot_validation(read["default"]["data"], target / "default.svg")
    for name, data in heads.items():
        plots.plot_gains(data, target / f"heads-{name}.svg")


def _text(name: str) -> str:
    return (HERE / "pages" / f"{name}.md").read_text()


def _first_screen(read: Results, fields: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    questions = [[f"[{question}](study/{name}.md)", fields[name]["answer"]] for name, question in QUESTIONS.items()]
    return {
        **{name: fields[name]["answer"] for name in ("choosing", "heads", "trained")},
        "selection": answers.SELECTION,
        "questions": "\n".join(f"| {' | '.join(row)} |" for row in questions),
        "n_data": len(read["choices"]["data"]),
        "n_models": sum(len(data["runs"]) for one in read["trained"] for data in one["data"].values()),
    }


def _choosing(read: Results) -> dict[str, Any]:
    data, equal = read["choices"]["data"], read.get("equal", {"data": {}})["data"].values()
    counts = {name: sum(row[name] for row in equal) for name in ("claims", "studies")}
    claims = (
        "If no candidate differs from another, `choose` should not claim a gain. In {studies} simulated choices "
        "all candidates had "
        "outcomes of one method, with different seeds. `choose` claimed a gain in {claims} of them "
        "(`python benchmarks/rank1/equal_candidates.py`)."
    )
    return read["choices"]["study"] | {
        "answer": answers.choosing(data),
        "regret": folded("The choice on each data set", regret_table(data)),
        "fixed": fixed_table(data),
        "equal": claims.format(**counts),
    }


def _temperature(read: Results) -> dict[str, Any]:
    study, data = read["choices"]["study"], read["choices"]["data"]
    gains = folded("All gains", gains_table(data))
    return {**study, "held": HELD, "answer": answers.temperature(data), "gains": gains}


def _heads(read: Results) -> dict[str, Any]:
    study, data = read["heads"]["study"], read["heads"]["data"]
    costs = read.get("costs", {"data": {}})["data"]
    trained = {title_of(one["study"]): one["data"] for one in read.get("trained", [])}
    return study | {
        "answer": answers.heads(data),
        "n_methods": max(len(one["methods"]) for one in data.values()) - 1,
        "overview": folded("All gains at Rank@1", overview(data)),
        "data": "\n".join(part for name, one in data.items() for part in _data(name, one, study, costs.get(name, {}))),
        "validation": folded("All candidates", validation(data)),
        "targets": targets(data, trained),
    }


def _data(name: str, data: Mapping[str, Any], study: Mapping[str, Any], costs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a data set of heads."""
    methods = data["methods"]
    more = {
        "temperature": {name: f"{row['temperature']:.3f}" for name, row in methods.items() if "temperature" in row},
        "ms a step": {name: f"{cost['cpu_ms']:.0f}" for name, cost in costs.items()},
        "MiB": {name: f"{cost['peak_memory_mib']:.0f}" for name, cost in costs.items()},
    }
    yield head(name, data, study["data"][name].get("learning_rates", study["learning_rates"]))
    yield f"![gain in Rank@1 by method](../images/study/heads-{name}.svg)\n"
    yield folded(f"All figures of {name}", rows_of(methods, more))
    yield from _compared(methods)
    chosen = [f"{method}: `{row['candidate']}`" for method, row in methods.items() if row["candidate"] != method]
    yield "Chosen on validation: " + "; ".join(chosen) + ".\n"


def _compared(methods: Mapping[str, Any]) -> Iterator[str]:
    """Yield the gains over another method than the baseline."""
    for name, row in methods.items():
        for key, figures in row.items():
            if key.startswith("over_"):
                where = zip(FIGURES, ("at Rank@1", "at Rank@10", "from image to text"), strict=True)
                over = [f"{gain(figures[figure])} {what}" for figure, what in where]
                yield f"`{name}` over `{key.removeprefix('over_')}`: {', '.join(over)}, in percent.\n"


def _trained(read: Results) -> dict[str, Any]:
    towers = "\n".join(heads_and_towers(read["heads"], read["trained"], _text("towers"))) if "heads" in read else ""
    sections = [part for one in read["trained"] for part in trained_section(one, _text("trained_section"))]
    return {"answer": answers.trained(read["trained"]), "towers": towers, "sections": "\n".join(sections)}


def _pairs(read: Results) -> dict[str, Any]:
    data = read["pairs"]["data"]
    return {"answer": answers.pairs(data), "pairs": pairs_table(data)}


def _gradients(read: Results) -> dict[str, Any]:
    data = read["gradients"]["data"]
    answer = answers.gradients(data, read["pairs"]["data"]) if "pairs" in read else ""
    return {"seeds": read["gradients"]["seeds"], "answer": answer, "gradients": folded("All figures", gradients_table(data))}


def _default(read: Results) -> dict[str, Any]:
    data = read["default"]["data"]
    return {"answer": answers.default(data), "validation": validation(data, mean=True)}


def _varied(name: str, answer: Callable[[Mapping[str, Any]], str]) -> Callable[[Results], dict[str, Any]]:
    """Return the function of a study of heads whose data sets differ in one property."""

    def fields(read: Results) -> dict[str, Any]:
        data, methods = read[name]["data"], read[name]["study"]["methods"]
        parts = (
            "Gain in text-to-image Rank@1, in percent.\n\n" + overview(data),
            folded("The same at Rank@10", overview(data, FIGURES[1])),
            folded("Sizes, learning rates and costs", _sizes(data)),
            "Methods: " + "; ".join(f"{name}: `{spec}`" for name, (spec,) in methods.items() if name != spec) + ".\n",
        )
        return {"answer": answer(data), "tables": "\n".join(parts)}

    return fields


def _sizes(data: Mapping[str, Any]) -> str:
    rows = [
        [
            *(name, str(one["samples"]), str(one["queries"]), f"{one['near_duplicates_per_anchor']:.2f}"),
            *(f"{one['lr']:g}", f"{100 * one['methods'][BASELINE][FIGURES[0]]['mean']:.1f}"),
            f"{one['clustering_seconds']:.1f}",
        ]
        for name, one in data.items()
    ]
    return table(rows, ("data", "listings", "queries", "false", "learning rate", "Rank@1 of in_batch, %", "clustering, s"))


_FIELDS: dict[str, Callable[[Results], dict[str, Any]]] = {
    "choosing": _choosing,
    "temperature": _temperature,
    "heads": _heads,
    "trained": _trained,
    "pairs": _pairs,
    "gradients": _gradients,
    "parts": _varied("parts", answers.parts),
    "density": _varied("density", answers.density),
    "default": _default,
}


if __name__ == "__main__":
    draw(DOCS / "images" / "study")
    for file, content in pages().items():
        (DOCS / file).parent.mkdir(exist_ok=True)
        (DOCS / file).write_text(content)
