"""Report on a choice: the answer, a plot of the gains, and the table of all methods."""

from __future__ import annotations

from pathlib import Path

from clip_negatives.choosing import Choice
from clip_negatives.report.album import Album
from clip_negatives.report.charts import Estimate, intervals
from clip_negatives.report.page import Plot, Table, decimal, render, with_minus
from clip_negatives.storage.ownership import replaced_file

NAME = "choice.html"  # beside choice.json


def write_choice_page(choice: Choice, folder: str | Path) -> Path:
    """Write the report on a choice into the folder of its ``choice.json``, atomically, and return its path.

    Raises:
        ArtifactError: the report cannot be written.
    """
    file = Path(folder).absolute() / NAME
    html = render("choice.html.j2", choice=choice, album=Album({}, None), plot=_gains(choice), table=_methods(choice))
    with replaced_file(file) as partial:
        partial.write_text(html, encoding="utf-8")
    return file


def _gains(choice: Choice) -> Plot:
    """Return a plot of the gain in MRR of each method."""
    estimates = {}
    for row in choice.rows:
        gain, low, high = (100 * value for value in row.gain)
        estimates[row.name] = Estimate(gain, low, high, runs=())
    note = "Dot: mean over folds and seeds; bar: simultaneous 95 % confidence interval."
    return intervals(f"Gain in MRR over {choice.reference}", {"gain": estimates}, note, "% of the MRR", signed=True)


def _methods(choice: Choice) -> Table:
    """Return the figures of all methods."""
    gained = f"gain over {choice.reference}", "gain over in_batch"
    columns = ("method", gained[0], "MRR", "Rank@1", "Rank@10", "MRR, image to text", gained[1])
    rows = [
        (
            f"{row.name} (control)" if row.is_control else row.name,
            _interval(row.gain),
            *(decimal(100 * value, 1) for value in (row.mrr, row.rank_1, row.rank_10, row.image_mrr)),
            _interval(row.gain_over_baseline),
        )
        for row in choice.rows
    ]
    return Table("All methods, in %; a gain is of the MRR, text to image", columns, rows)


def _interval(gain: tuple[float, float, float]) -> str:
    mean, low, high = (with_minus(f"{100 * value:+.1f}") for value in gain)
    return "–" if gain == (0.0, 0.0, 0.0) else f"{mean} [{low}, {high}]"
