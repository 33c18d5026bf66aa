"""Figures of a comparison as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np

from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.output import DIRECTIONS
from clip_negatives.compare.statistics import paired_difference
from clip_negatives.compare.study import Comparison
from clip_negatives.report.charts import Estimate, Line, intervals, lines
from clip_negatives.report.page import Plot, Table, decimal

RANKS = {f"Rank@{k}": f"rank_{k}" for k in (1, 5, 10)}

POINTS = 120  # maximum of a loss curve; a point is the mean over several steps


def values(comparison: Comparison, method: str, figure: str) -> list[Any]:
    """Return a figure of every run of a method, by seed."""
    return [run[figure] for run in comparison.runs if run["method"]["name"] == method]


def mean(comparison: Comparison, method: str, figure: str) -> float | None:
    """Return the mean of a figure over the runs of a method that have it, or None."""
    known = [value for value in values(comparison, method, figure) if value is not None]
    return fmean(known) if known else None


def estimates(comparison: Comparison, figure: str, scale: float = 1.0) -> dict[str, Estimate]:
    """Return mean, interval and runs of a figure, for each method that has it."""
    results = {}
    for name in (name for name, figures in comparison.summaries.items() if figure in figures):
        runs = [scale * value for value in values(comparison, name, figure)]
        result = paired_difference(runs, [0.0] * len(runs))  # the difference to 0 has the interval of the mean
        results[name] = Estimate(result.mean, result.low, result.high, runs)
    return results


def ranks(comparison: Comparison) -> list[Plot]:
    """Return plots of Rank@k in both directions."""
    chance = ", ".join(f"{100 * comparison.runs[0][f'chance_rank_{k}']:.2g} % at {k}" for k in (1, 5, 10))
    note = f"Dot: mean over the seeds; bar: its 95 % interval; tick: one run. Chance: {chance}."
    plots = []
    for direction, label in DIRECTIONS.items():
        series = {rank: estimates(comparison, f"{direction}_{field}", 100) for rank, field in RANKS.items()}
        table = _ranks_table(f"Rank@k, {label}, in %: mean and 95 % interval", series)
        plots.append(intervals(f"Rank@k, {label}", series, note, "% of queries", table=table))
    return plots


def differences(comparison: Comparison) -> tuple[Plot, list[Table]]:
    """Return a plot of the paired difference of Rank@1 to the baseline, and tables for all k."""

    def difference(name: str, figure: str) -> Estimate:
        result = comparison.differences[name][figure]
        low, high = (None if value is None else 100 * value for value in (result.low, result.high))
        pairs = zip(values(comparison, name, figure), values(comparison, BASELINE, figure), strict=True)
        return Estimate(100 * result.mean, low, high, [100 * (a - b) for a, b in pairs])

    series, tables = {}, []
    for direction, label in DIRECTIONS.items():
        by_rank = {
            rank: {name: difference(name, f"{direction}_{field}") for name in comparison.differences}
            for rank, field in RANKS.items()
        }
        series[label] = by_rank["Rank@1"]
        caption = f"Rank@k, {label}, minus {BASELINE} of the same seed, in percentage points: mean and 95 % interval"
        tables.append(_ranks_table(caption, by_rank, "+"))
    note = "Dot: mean difference over the seeds; bar: its 95 % interval; tick: one seed. Not significant if the bar crosses 0."
    return intervals(f"Rank@1 minus {BASELINE}", series, note, "percentage points", signed=True), tables


def costs(comparison: Comparison) -> list[Plot]:
    """Return plots of time and memory."""
    plots = []
    for figure, title, meaning, unit in (
        ("seconds_per_step", "Time per step", "Median time between two batches.", "seconds"),
        ("peak_memory_mib", "Peak memory", "Memory of the training process, without evaluation.", "MiB"),
    ):
        series = {name: item._replace(low=None, high=None) for name, item in estimates(comparison, figure).items()}
        if series:  # a run of one step has no time between batches
            plots.append(intervals(title, {"": series}, f"{meaning} Dot: mean over the seeds; tick: one run.", unit))
    return plots


def false_negatives(comparison: Comparison) -> Plot:
    """Return a plot of the false negatives in a batch, before and after the weighting."""
    fields = {"in the batch": "false_negatives_per_anchor", "kept as negatives": "false_negatives_kept_per_anchor"}
    series = {label: estimates(comparison, field) for label, field in fields.items()}
    note = "False negatives before and after removal. A weighting that removes none may lower their weight: see the table."
    return intervals("False negatives per image", series, note, "false negatives in a batch")


def curves(comparison: Comparison) -> Plot | None:
    """Return a plot of the loss of each method, mean and range over the seeds; None without logged losses."""
    series, rows = {}, []
    for name in comparison.summaries:
        logged = [losses for losses in values(comparison, name, "losses") if losses]
        if not logged:
            continue
        steps = min(map(len, logged))
        edges = np.linspace(0, steps, min(POINTS, steps) + 1).astype(int)
        runs = np.array([np.add.reduceat(losses[:steps], edges[:-1]) / np.diff(edges) for losses in logged])
        middle, mean = (edges[:-1] + edges[1:] + 1) / 2, runs.mean(axis=0).tolist()
        band = (runs.min(axis=0).tolist(), runs.max(axis=0).tolist()) if len(logged) > 1 else ()
        series[name] = Line(middle.tolist(), mean, *band)
        marks = [0, len(mean) // 4, len(mean) // 2, 3 * len(mean) // 4, len(mean) - 1]
        rows.append((name, *(decimal(mean[mark], 3) for mark in marks)))
    if not series:
        return None
    table = Table("Loss: mean over the seeds", ("method", "start", "25 % of steps", "50 %", "75 %", "end"), rows)
    note = "Line: mean over the seeds; band: their range. Losses of different methods are not comparable."
    return lines("Training loss", series, note, xlabel="logged step", ylabel="loss", table=table, height=250)


def _ranks_table(caption: str, series: Mapping[str, Mapping[str, Estimate]], sign: str = "") -> Table:
    """Return the estimates by method; with `sign` "+", positive numbers have a sign too."""

    def cell(estimate: Estimate) -> str:
        numbers = (value for value in estimate[:3] if value is not None)
        mean, *ends = (f"{round(value, 1) + 0.0:{sign}.1f}".replace("-", "−") for value in numbers)  # no -0.0
        return f"{mean} [{', '.join(ends)}]" if ends else mean

    names = next(iter(series.values()))
    rows = [(name, *(cell(estimates[name]) for estimates in series.values())) for name in names]
    return Table(caption, ("method", *series), rows)
