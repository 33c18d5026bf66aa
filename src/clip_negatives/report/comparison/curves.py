"""How the losses fell."""

from __future__ import annotations

import numpy as np

from clip_negatives.compare.study import Comparison
from clip_negatives.report.charts.lines import Line, lines
from clip_negatives.report.comparison.figures import values
from clip_negatives.report.formats import decimal
from clip_negatives.report.page import Plot, Table

POINTS = 120
"""Points of a curve; of more steps, the mean of as many as come to one."""


def curves(comparison: Comparison) -> Plot | None:
    """Draw the losses of each method: mean over seeds, and the band of the lowest and the highest; None where none is known."""
    series, rows = {}, []
    for name in comparison.summaries:
        logged = [losses for losses in values(comparison, name, "losses") if losses]
        if not logged:
            continue
        steps = min(map(len, logged))
        edges = np.linspace(0, steps, min(POINTS, steps) + 1).astype(int)
        runs = np.array([np.add.reduceat(losses[:steps], edges[:-1]) / np.diff(edges) for losses in logged])
        middle = (edges[:-1] + edges[1:] + 1) / 2
        band = runs.min(axis=0).tolist(), runs.max(axis=0).tolist()
        mean = runs.mean(axis=0)
        series[name] = Line(middle.tolist(), mean.tolist(), *(band if len(logged) > 1 else ()))
        marks = [0, len(mean) // 4, len(mean) // 2, 3 * len(mean) // 4, len(mean) - 1]
        rows.append((name, *(decimal(float(mean[mark]), 3) for mark in marks)))
    if not series:
        return None
    columns = "method", "at the start", "after a quarter", "after a half", "after three quarters", "at the end"
    note = (
        "Mean over the seeds, and from the lowest to the highest of them. Methods that remove or weigh pairs solve another "
        "task: a lower loss is not a better model."
    )
    table = Table("Loss: mean over seeds", columns, tuple(rows))
    return lines("Training", series, note=note, xlabel="logged step", ylabel="loss", table=table, height=250)
