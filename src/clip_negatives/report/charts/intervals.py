"""Plots of figures by method: means, intervals, single runs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_negatives.report.charts.drawing import LINE, MUTED, SERIES, draw, plain
from clip_negatives.report.page import Plot, Table

LETTERS = 20
"""Letters of a line of a method's name."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hold a mean, the interval around it where there is one, and what it is of.

    Attributes:
        mean: mean over runs.
        low: lower end of the interval; None where one run gives none.
        high: upper end.
        runs: the single runs.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    runs: tuple[float, ...] = ()


def intervals(
    title: str,
    series: Mapping[str, Mapping[str, Estimate]],
    *,
    note: str,
    xlabel: str,
    table: Table | None = None,
    signed: bool = False,
) -> Plot:
    """Draw a row for each method, and in it for each series a point, its interval, and its runs.

    Args:
        title: what it shows.
        series: for each series, the estimate of each method.
        note: how to read it.
        xlabel: what x is.
        table: the figures behind it.
        signed: whether 0 is marked, as for differences; else x begins there, and intervals are cut there.
    """
    names = list(dict.fromkeys(name for estimates in series.values() for name in estimates))

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        step = 0.62 / max(1, len(series))
        for place, (label, estimates) in enumerate(series.items()):
            colour = SERIES[place % len(SERIES)]
            shift = (place - (len(series) - 1) / 2) * step
            for row, name in enumerate(names):
                if name in estimates:
                    _point(axis, estimates[name], row + shift, colour)
            axis.plot([], [], "o", color=colour, ms=5, label=label)
        axis.set_yticks(range(len(names)), [plain(textwrap.fill(name, LETTERS)) for name in names])
        axis.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        if signed:
            axis.axvline(0, color=MUTED, linewidth=1)
        else:
            axis.set_xlim(0, 1.05 * axis.get_xlim()[1] or 1)
        axis.grid(visible=False, axis="y")
        for row in range(1, len(names)):
            axis.axhline(row - 0.5, color=LINE, linewidth=0.6)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2)

    height = 70 + len(names) * (14 + 12 * max(len(series), _most_lines(names)))
    return Plot(title, draw(paint, name=f"Dot plot. {title}. {note}", height=height), note, table)


def _point(axis: Any, estimate: Estimate, y: float, colour: str) -> None:
    axis.plot(estimate.runs, [y] * len(estimate.runs), "|", color=colour, ms=7, markeredgewidth=1.1)
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [y, y], "-", color=colour, linewidth=1.6, solid_capstyle="butt")
    axis.plot([estimate.mean], [y], "o", color=colour, ms=6)


def _most_lines(names: Sequence[str]) -> int:
    return max(len(textwrap.wrap(name, LETTERS)) for name in names)
