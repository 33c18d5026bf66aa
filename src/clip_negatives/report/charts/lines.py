"""Plots of values over something: sizes, options, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_negatives.report.charts.drawing import INK, SERIES, draw, plain
from clip_negatives.report.page import Plot, Table

DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)))
"""How lines are drawn once all colours are used."""


@dataclass(frozen=True, slots=True)
class Line:
    """Hold a line and, where there is one, the band around it."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def lines(
    title: str,
    series: Mapping[str, Line],
    *,
    note: str,
    xlabel: str,
    ylabel: str,
    table: Table | None = None,
    log: tuple[str, ...] = (),
    marked: float | None = None,
    points: bool = False,
    height: float = 220,
) -> Plot:
    """Draw lines.

    Args:
        title: what they show.
        series: the lines, by name.
        note: how to read it.
        xlabel: what x is.
        ylabel: what y is.
        table: the figures behind it.
        log: axes of logarithmic scale, "x" or "y".
        marked: x that is in use now, marked by a line.
        points: whether the values are marked.
        height: see `draw`.
    """

    def paint(figure: Any) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axis = figure.subplots()
        for place, (name, line) in enumerate(series.items()):
            colour, dashes = SERIES[place % len(SERIES)], DASHES[place // len(SERIES) % len(DASHES)]
            axis.plot(line.x, line.y, color=colour, linestyle=dashes, label=plain(name), marker="o" if points else "", ms=4)
            if line.low is not None and line.high is not None:
                axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        if marked is not None:
            axis.axvline(marked, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.set(**{f"{name}scale": "log" for name in log})
        if "y" in log:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")  # 100, not ten to the power of two
            axis.yaxis.set_minor_formatter(NullFormatter())
        if "x" in log and points:
            ticks = sorted({value for line in series.values() for value in line.x})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xticks([], minor=True)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)

    return Plot(title, draw(paint, name=f"Line chart. {title}. {note}", height=height), note, table)
