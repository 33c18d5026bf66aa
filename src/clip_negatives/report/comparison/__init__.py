"""Report on a comparison."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_negatives.compare import Comparison
from clip_negatives.compare.arguments import open_described
from clip_negatives.compare.methods import BASELINE, CONTROL
from clip_negatives.compare.tuning import Tuned
from clip_negatives.errors import DataError
from clip_negatives.report.album import Album
from clip_negatives.report.comparison import figures
from clip_negatives.report.comparison.examples import Changed, changes, read_answers
from clip_negatives.report.page import render
from clip_negatives.storage.ownership import replaced_file

NAME = "report.html"  # in the folder of the comparison


def write_comparison(comparison: Comparison, output: str | Path) -> Path:
    """Write the report on a comparison, atomically, and return its path.

    Args:
        comparison: the measured figures.
        output: folder of the comparison; its runs hold the answers to the test queries.

    Raises:
        ArtifactError: the report cannot be written.
    """
    output = Path(output).absolute()
    answers = read_answers(comparison, output)
    changed = changes(answers) if BASELINE in answers else []
    # The location comes from the caller, never from a file in the folder: `pipe:` would run a command.
    test = comparison.setting.get("test") if answers.get(BASELINE) else None
    album, no_examples = _album(changed, test)
    gain_plot, gain_tables = figures.gains(comparison)
    html = render(
        "comparison.html.j2",
        comparison=comparison,
        baseline=BASELINE,
        control=CONTROL,
        rank_plots=figures.ranks(comparison),
        gain_plot=gain_plot,
        gain_tables=gain_tables,
        tuned=[str(Tuned(**choice)) for choice in comparison.setting["tuning"]],
        training=figures.curves(comparison),
        cost_plots=figures.costs(comparison),
        mean=functools.partial(figures.mean, comparison),
        false_plot=figures.false_negatives(comparison),
        album=album,
        no_examples=no_examples,
        changed=changed,
    )
    with replaced_file(output / NAME) as file:
        file.write_text(html, encoding="utf-8")
    return output / NAME


def _album(changed: Sequence[Changed], test: Mapping[str, Any] | None) -> tuple[Album, str]:
    """Return the pictures of the examples; if there are no examples, also return the reason."""
    if test is None:
        return Album({}, None), "The runs have no saved answers: an older version of clip-negatives made them."
    examples = [example for change in changed for example in (*change.fixed, *change.broken)]
    samples = {index for example in examples for index in (example.query, example.baseline, example.method)}
    try:
        source = open_described(test)
        return Album({index: source.texts[index] for index in samples}, source.small_images), ""
    except (DataError, IndexError):
        return Album({}, None), "The test data were moved or changed after the comparison."
