"""The report on a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_negatives.atomic import replaced_file
from clip_negatives.compare import Comparison
from clip_negatives.compare.arguments import value_of
from clip_negatives.compare.methods import BASELINE, CONTROL
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import DataError
from clip_negatives.report.album import Album
from clip_negatives.report.comparison import figures
from clip_negatives.report.comparison.curves import curves
from clip_negatives.report.comparison.examples import Changed, changes, read_answers
from clip_negatives.report.formats import count
from clip_negatives.report.page import Table, render

NAME = "report.html"
"""The page, in the folder of the comparison."""


def write_comparison(comparison: Comparison, output: str | Path) -> Path:
    """Write a page about a comparison, atomically, and return its path.

    Args:
        comparison: what was measured.
        output: folder of the comparison, with its runs, whose answers to the test queries become examples.

    Raises:
        ArtifactError: it cannot be written.
    """
    output = Path(output).absolute()
    answers = read_answers(comparison, output)
    changed = changes(answers) if BASELINE in answers else []
    # Said by whoever ran this, never by a file in the folder: it may name a command to read from.
    test = comparison.setting.get("test") if answers.get(BASELINE) else None
    album, none_because = _album(changed, test)
    difference_plot, difference_tables = figures.differences(comparison)
    cost_plots, cost_table = figures.costs(comparison)
    false_plot, false_table = figures.false_negatives(comparison)
    html = render(
        "comparison.html.j2",
        comparison=comparison,
        baseline=BASELINE,
        control=CONTROL,
        album=album,
        none_because=none_because,
        changed=changed,
        n_seeds=comparison.setting["seeds"],
        rank_plots=figures.ranks(comparison),
        difference_plot=difference_plot,
        difference_tables=difference_tables,
        best=_best(comparison),
        training=curves(comparison),
        cost_plots=cost_plots,
        cost_table=cost_table,
        false_plot=false_plot,
        false_table=false_table,
        setting=_setting(comparison),
        methods=_methods(comparison),
    )
    with replaced_file(output / NAME) as file:
        file.write_text(html, encoding="utf-8")
    return output / NAME


def _album(changed: Sequence[Changed], test: Mapping[str, Any] | None) -> tuple[Album, str]:
    """Return the pictures of the examples, and, where there are none, why."""
    shown = sorted(
        {
            index
            for change in changed
            for one in (*change.mended, *change.broken)
            for index in (one.query, one.baseline, one.method)
        }
    )
    if test is None:
        return Album({}, None), "The runs of this comparison were made by a version that did not keep their answers."
    try:
        source = open_pairs(**test)
        return Album({index: source.texts[index] for index in shown}, source.small_images), ""
    except (DataError, IndexError):
        return Album({}, None), "The test data are not where they were, or have changed."


def _best(comparison: Comparison) -> str:
    """Return the method of the highest mean Rank@1 from text to image."""
    means = {name: summaries["text_to_image_rank_1"].mean for name, summaries in comparison.summaries.items()}
    return max(means, key=lambda name: means[name])


def _setting(comparison: Comparison) -> Table:
    setting, one = comparison.setting, comparison.runs[0]
    line, clusters = setting["arguments"], setting["clusters"]
    rows = {
        "model": value_of(line, "--model"),
        "training pairs": count(setting["n_train"]),
        "test queries": count(one["queries"]),
        "seeds": str(setting["seeds"]),
        "batch size": value_of(line, "--batch-size"),
        "epochs": value_of(line, "--epochs"),
        "steps": count(one["steps"]),
        "clusters, image / text": f"{clusters.get('n_image_clusters', '–')} / {clusters.get('n_text_clusters', '–')}",
        "encoders, image / text": f"{clusters.get('image_encoder', '–')} / {clusters.get('text_encoder', '–')}",
        "machine": setting["machine"],
        "versions": ", ".join(f"{name} {number}" for name, number in setting["versions"].items()),
        "arguments of open_clip": " ".join(line),
    }
    return Table("What was run", ("", ""), tuple(rows.items()))


def _methods(comparison: Comparison) -> Table:
    found = {run["method"]["name"]: run["method"] for run in comparison.runs}
    rows = tuple(
        (
            name,
            method["sampler"],
            method["weighting"],
            "learned" if method["temperature"] is None else f"held at {method['temperature']:g}",
        )
        for name, method in found.items()
    )
    return Table("Methods", ("method", "sampler", "weighting", "temperature"), rows)
