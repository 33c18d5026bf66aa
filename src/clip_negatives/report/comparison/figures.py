"""Figures of a comparison as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np

from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.results import DIRECTIONS, TOP_K, Comparison
from clip_negatives.metrics.statistics import Gain
from clip_negatives.report.charts import Estimate, Line, intervals, lines
from clip_negatives.report.page import Plot, Table, decimal, with_minus

SCORES = {"MRR": "mrr", **{f"Rank@{k}": f"rank_{k}" for k in TOP_K}}

POINTS = 120  # maximum of a loss curve; a point is the mean over several steps


def values(comparison: Comparison, method: str, figure: str) -> list[Any]:
    """Return a figure of every run of a method, by seed."""
    return [run[figure] for run in comparison.runs if run["method"]["name"] == method]


def mean(comparison: Comparison, method: str, figure: str) -> float | None:
    """Return the mean of a figure over the runs of a method that have it, or None."""
    known = [value for value in values(comparison, method, figure) if value is not None]
    return fmean(known) if known else None


def estimates(comparison: Comparison, figure: str, scale: float = 1.0) -> dict[str, Estimate]:
    """Return mean and runs of a figure, for each method that has it."""
    results = {}
    for name in (name for name, figures in comparison.summaries.items() if figure in figures):
        runs = [scale * value for value in values(comparison, name, figure)]
        results[name] = Estimate(fmean(runs), None, None, runs)
    return results


def ranks(comparison: Comparison) -> list[Plot]:
    """Return plots of MRR and Rank@k in both directions."""
    chance = ", ".join(f"{100 * comparison.runs[0][f'chance_rank_{k}']:.2g} % at {k}" for k in TOP_K)
    note = f"Dot: mean over the seeds; tick: one run. Rank@k by chance: {chance}."
    plots = []
    for direction, label in DIRECTIONS.items():
        series = {name: estimates(comparison, f"{direction}_{field}", 100) for name, field in SCORES.items()}
        table = _scores_table(f"MRR and Rank@k, {label}, in %: mean over the seeds", series)
        plots.append(intervals(f"MRR and Rank@k, {label}", series, note, "%", table=table))
    return plots


def gains(comparison: Comparison) -> tuple[Plot | None, list[Table]]:
    """Return a plot of the gain in MRR with intervals, and tables of the gains and of the differences of all scores."""
    rows = [(name, with_minus(str(gain))) for name, gain in comparison.gains.items()]
    note = "Dot: gain; bar: simultaneous 95 % confidence interval."
    if not rows:
        return None, []
    table = Table(f"Gain in MRR over {BASELINE}, text to image", ("method", "gain [95 %]"), rows)
    estimates = {name: _estimate(gain) for name, gain in comparison.gains.items()}
    title = f"Gain in MRR over {BASELINE}, text to image"
    plot = intervals(title, {"": estimates}, note, "%", signed=True, table=table)
    tables = []
    if comparison.gains_over_fixed:
        (fixed,) = set(comparison.summaries) - {BASELINE, *comparison.gains_over_fixed}
        over_fixed = [(name, with_minus(str(gain))) for name, gain in comparison.gains_over_fixed.items()]
        tables.append(Table(f"Gain in MRR over {fixed}, text to image", ("method", "gain [95 %]"), over_fixed))
    for direction, label in DIRECTIONS.items():
        series = {name: _differences(comparison, f"{direction}_{field}") for name, field in SCORES.items()}
        caption = f"MRR and Rank@k, {label}, minus {BASELINE}, in percentage points, with 95 % interval"
        tables.append(_scores_table(caption, series, "+"))
    return plot, tables


def _estimate(gain: Gain) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (gain.low, gain.high))
    return Estimate(100 * gain.estimate, low, high, [])


def _differences(comparison: Comparison, figure: str) -> dict[str, Estimate]:
    """Return the differences of a figure to the baseline in percentage points, by method."""
    results = {}
    for name, differences in comparison.differences.items():
        mean, low, high = (getattr(differences[figure], part) for part in ("mean", "low", "high"))
        ends = [None if end is None else 100 * end for end in (low, high)]
        results[name] = Estimate(100 * mean, ends[0], ends[1], [])
    return results


def costs(comparison: Comparison) -> list[Plot]:
    """Return plots of time and memory."""
    plots = []
    for figure, title, meaning, unit in (
        ("seconds_per_step", "Time per step", "Median time between two batches.", "seconds"),
        ("peak_memory_mib", "Peak memory", "Memory of the training process, without evaluation.", "MiB"),
    ):
        series = estimates(comparison, figure)
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


def _scores_table(caption: str, series: Mapping[str, Mapping[str, Estimate]], sign: str = "") -> Table:
    """Return the estimates by method; with `sign` "+", positive numbers have a sign too."""

    def cell(estimate: Estimate) -> str:
        numbers = (value for value in estimate[:3] if value is not None)
        mean, *ends = (with_minus(f"{round(value, 1) + 0.0:{sign}.1f}") for value in numbers)  # no -0.0
        return f"{mean} [{', '.join(ends)}]" if ends else mean

    names = next(iter(series.values()))
    rows = [(name, *(cell(estimates[name]) for estimates in series.values())) for name in names]
    return Table(caption, ("method", *series), rows)
