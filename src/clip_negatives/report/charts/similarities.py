"""Plots of similarities and weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clip_negatives.report.charts.drawing import INK, SERIES, draw
from clip_negatives.report.formats import decimal, percent
from clip_negatives.report.page import Plot, Table

UNDER, OVER = (0.18, 0.46, 0.71), (0.87, 0.44, 0.10)
"""Colours, red green and blue, of cells under and over a threshold; laid on thinly where the value is low."""

Values = npt.NDArray[np.float64]


def histograms(
    title: str, series: Mapping[str, Values], edges: Values, *, note: str, xlabel: str, threshold: float | None = None
) -> Plot:
    """Draw the outlines of some histograms over one another.

    Args:
        title: what they are of.
        series: share of each bin, 0 .. 1, by name.
        edges: of the bins; one more than there are shares.
        note: how to read it.
        xlabel: what the bins are of.
        threshold: marked by a line.
    """

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        for colour, (name, shares) in zip(SERIES, series.items(), strict=False):
            axis.stairs(100 * shares, edges, color=colour, linewidth=1.6, label=name)
            axis.stairs(100 * shares, edges, color=colour, fill=True, alpha=0.16)
        if threshold is not None:
            axis.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
            axis.annotate(
                f"threshold {threshold:.2f}",
                (threshold, 1.0),
                (4, -2) if threshold < (edges[0] + edges[-1]) / 2 + 0.2 else (-4, -2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                ha="left" if threshold < (edges[0] + edges[-1]) / 2 + 0.2 else "right",
                fontsize=9.5,
            )
        axis.set(xlabel=xlabel, ylabel="% of pairs", xlim=(edges[0], edges[-1]), ylim=(0, None))
        axis.grid(visible=False, axis="x")
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2, handlelength=1.2)

    ranges = [f"{low:.2f} to {high:.2f}".replace("-", "−") for low, high in itertools.pairwise(edges)]
    shown = [place for place in range(len(ranges)) if any(shares[place] > 0 for shares in series.values())]
    rows = [(ranges[place], *(percent(float(shares[place]), 2) for shares in series.values())) for place in shown]
    table = Table(f"{title}: share of pairs by bin", (xlabel, *series), tuple(rows))
    return Plot(title, draw(paint, name=f"Histogram. {title}. {note}", height=210), note, table)


def heatmap(
    title: str, similarity: Values, threshold: float | None, *, labels: Sequence[int], names: Sequence[str], note: str
) -> Plot:
    """Draw a table of similarities, with all at or over the threshold in a colour of its own.

    Args:
        title: what it is of.
        similarity: cosines, -1 .. 1, square.
        threshold: where the colour changes; None for one colour.
        labels: number of the cluster of each row.
        names: what stands for each cluster in the table behind the plot.
        note: how to read it.
    """
    limit = 2.0 if threshold is None else threshold

    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 0.045))
        left.imshow(_coloured(similarity, limit), interpolation="none")
        left.set(xticks=[], yticks=[], xlabel=f"{len(labels)} clusters, the similar ones side by side")
        scale = np.linspace(1.0, -1.0, 101)
        right.imshow(_coloured(scale[:, None], limit), aspect="auto", extent=(0, 1, -1, 1), interpolation="none")
        right.set(xticks=[], yticks=[-1, -0.5, 0, 0.5, 1])
        right.yaxis.tick_right()
        if threshold is not None:
            right.axhline(threshold, color=INK, linewidth=1.4)
        for axis in (left, right):
            axis.grid(visible=False)
            axis.spines[:].set_visible(True)

    rows = _nearest(similarity, labels, names)
    table = Table(f"{title}: the most similar clusters", ("clusters", "a typical text of each", "similarity"), rows)
    return Plot(title, draw(paint, name=f"Heat map. {title}. {note}", height=350), note, table)


def shares(title: str, table: Values, rows: Sequence[str], columns: Sequence[str], *, note: str) -> Plot:
    """Draw a table of shares, 0 .. 1, with names at its rows and columns."""

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        axis.imshow(_coloured(table, 2.0, lowest=0.0), interpolation="none", aspect="auto")
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set(xlabel="text cluster", ylabel="image cluster")
        axis.grid(visible=False)
        axis.tick_params(length=0)
        if len(rows) <= 12:
            for place in np.argwhere(table >= 0.05):
                axis.text(place[1], place[0], f"{100 * table[tuple(place)]:.0f}", ha="center", va="center", fontsize=8)

    cells = [(row, *(percent(float(share), 0) for share in line)) for row, line in zip(rows, table, strict=True)]
    figures = Table(title, ("image cluster", *(f"text cluster {name}" for name in columns)), tuple(cells))
    return Plot(title, draw(paint, name=f"Heat map. {title}. {note}", height=330), note, figures)


def _coloured(values: Values, threshold: float, *, lowest: float = -0.1) -> Values:
    """Return colours with opacity, which go with a light page and a dark one; under `lowest` there is none."""
    strength = np.clip((values - lowest) / (1.0 - lowest), 0.0, 1.0)
    over = values >= threshold
    colours = np.where(over[..., None], OVER, UNDER)
    opacity = np.where(over, 0.35 + 0.65 * strength, 0.9 * strength)
    whole: Values = np.concatenate([colours, opacity[..., None]], axis=-1)
    return whole


def _nearest(similarity: Values, labels: Sequence[int], names: Sequence[str], most: int = 10) -> tuple[tuple[str, ...], ...]:
    """Return the rows of a table of the most similar pairs of different clusters."""
    left, right = np.triu_indices(len(similarity), k=1)
    order = np.argsort(-similarity[left, right], kind="stable")[:most]
    return tuple(
        (
            f"{labels[left[place]]} and {labels[right[place]]}",
            f"{names[left[place]]} / {names[right[place]]}",
            decimal(float(similarity[left[place], right[place]])),
        )
        for place in order
    )
