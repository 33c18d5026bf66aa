"""Plots of the study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sections import save_svg
from tables import BASELINE, FIGURES, ordered

LABEL = "gain in text-to-image Rank@1 over in-batch negatives, %"


def plot_gains(data: Mapping[str, Any], target: Path) -> None:
    """Draw the gain in Rank@1 of each method of a data set with its interval."""
    rows = [(name, one[FIGURES[0]]) for name, one in reversed(ordered(data["methods"]))]
    figure = Figure(figsize=(7, 0.24 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for place, (name, one) in enumerate(rows):
        better = "C2" if one["low"] > 0 else "C3" if one["high"] < 0 else "0.5"
        axes.plot([100 * one["low"], 100 * one["high"]], [place, place], color=better, lw=2)
        axes.plot(100 * one["gain"], place, "o", color=better, label=name, ms=4)
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set_xlabel(LABEL)
    axes.grid(axis="x", alpha=0.3)
    save_svg(figure, target)


def plot_densities(data: Mapping[str, Any], target: Path) -> None:
    """Draw the gain in Rank@1 of each method, with its interval, by the false negatives of an anchor in a batch."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    methods = [name for name in next(iter(data.values()))["methods"] if name != BASELINE]
    for place, name in enumerate(methods):
        rows = [one for one in data.values() if name in one["methods"]]
        gains = [one["methods"][name][FIGURES[0]] for one in rows]
        middle, low, high = ([100 * gain[of] for gain in gains] for of in ("gain", "low", "high"))
        shift = 1.03 ** (place - (len(methods) - 1) / 2)  # so that the intervals stand beside each other
        at = [shift * one["near_duplicates_per_anchor"] for one in rows]
        axes.plot(at, middle, "o-", color=f"C{place}", label=name, ms=4, lw=1.5)
        axes.vlines(at, low, high, color=f"C{place}", lw=1, alpha=0.6)
    axes.axhline(0, color="0.3", lw=1)
    axes.set_xscale("log")
    ticks = [one["near_duplicates_per_anchor"] for one in data.values()]
    axes.set_xticks(ticks, [f"{tick:.2f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("others of its item in a batch, for each listing")
    axes.set_ylabel(LABEL, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2, loc="lower right")
    save_svg(figure, target)
