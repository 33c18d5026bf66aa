"""What a comparison measured, as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.output import DIRECTIONS
from clip_negatives.compare.statistics import Summary, paired_difference
from clip_negatives.compare.study import Comparison
from clip_negatives.report.charts.intervals import Estimate, intervals
from clip_negatives.report.formats import count, decimal, percent
from clip_negatives.report.page import Plot, Table

TOP_K = (1, 5, 10)


def values(comparison: Comparison, method: str, figure: str) -> list[Any]:
    """Return a figure of every run of a method, by seed."""
    return [run[figure] for run in comparison.runs if run["method"]["name"] == method]


def estimates(comparison: Comparison, figure: str, scale: float = 1.0, *, interval: bool = True) -> dict[str, Estimate]:
    """Return mean, interval if wanted, and runs of a figure for each method that has it."""
    found = {}
    for name, figures in comparison.summaries.items():
        if figure in figures:
            runs = [scale * value for value in values(comparison, name, figure)]
            # The interval of a mean is that of its difference to nothing.
            mean = paired_difference(runs, [0.0] * len(runs))
            ends = (mean.low, mean.high) if interval else (None, None)
            found[name] = Estimate(mean.mean, *ends, tuple(runs))
    return found


def ranks(comparison: Comparison) -> list[Plot]:
    """Draw Rank@k of both directions."""
    found, one = [], comparison.runs[0]
    for direction, label in DIRECTIONS.items():
        series = {f"Rank@{k}": estimates(comparison, f"{direction}_rank_{k}", 100) for k in TOP_K}
        chance = ", ".join(f"{100 * one[f'chance_rank_{k}']:.2g} % at {k}" for k in TOP_K)
        rows = tuple((name, *(_estimate(series[f"Rank@{k}"][name], 1) for k in TOP_K)) for name in comparison.summaries)
        title = f"Rank@k from {label}"
        table = Table(f"{title}, in %: mean and its 95 % interval", ("method", *series), rows)
        note = f"Dots: mean of the seeds; bars: its 95 % interval; ticks: single runs. By chance: {chance}."
        found.append(intervals(title, series, note=note, xlabel="% of queries", table=table))
    return found


def differences(comparison: Comparison) -> tuple[Plot, list[Table]]:
    """Draw the paired difference of Rank@1 to the baseline, and give those of all k."""
    series = {}
    for direction, label in DIRECTIONS.items():
        series[label] = {name: _difference(comparison, name, f"{direction}_rank_1") for name in comparison.differences}
    tables = []
    for direction, label in DIRECTIONS.items():
        caption = f"{label.capitalize()}: difference to {BASELINE} of the same seed, in points: mean and its 95 % interval"
        rows = tuple(
            (name, *(_estimate(_difference(comparison, name, f"{direction}_rank_{k}"), 1, "+") for k in TOP_K))
            for name in comparison.differences
        )
        tables.append(Table(caption, ("method", *(f"Rank@{k}" for k in TOP_K)), rows))
    note = (
        f"Points of Rank@1 over {BASELINE} of the same seed: mean and its 95 % interval. An interval across 0 says that the "
        "seeds do not tell the two apart."
    )
    plot = intervals(f"Rank@1 minus that of {BASELINE}", series, note=note, xlabel="points of %", signed=True)
    return plot, tables


def costs(comparison: Comparison) -> tuple[list[Plot], Table]:
    """Draw time and memory."""
    seconds = estimates(comparison, "seconds_per_step", interval=False)
    memory = estimates(comparison, "peak_memory_mib", interval=False)
    how = "Dots: mean; ticks: single runs."
    plots = [
        intervals(title, {"": found}, note=f"{what} {how}", xlabel=unit)
        for title, found, what, unit in (
            ("Time of a step", seconds, "Median seconds between two batches.", "seconds"),
            ("Peak memory", memory, "Of the process of a run, without its evaluation.", "MiB"),
        )
        if found  # a run of one step has no time between two
    ]
    rows = []
    for name in comparison.summaries:
        gpu = [value for value in values(comparison, name, "peak_gpu_memory_mib") if value is not None]
        trained = values(comparison, name, "train_seconds")
        rows.append(
            (
                name,
                _spread(comparison.summaries[name]["seconds_per_step"]) if name in seconds else "–",
                decimal(sum(trained) / len(trained), 0),
                count(memory[name].mean),
                count(sum(gpu) / len(gpu)) if gpu else "–",
            )
        )
    columns = "method", "seconds a step", "seconds of training", "peak memory, MiB", "peak GPU memory, MiB"
    return plots, Table("Time and memory: means over seeds, and the standard deviation of a step", columns, tuple(rows))


def false_negatives(comparison: Comparison) -> tuple[Plot, Table]:
    """Draw how many false negatives an image met, and how many were left."""
    truth = comparison.runs[0]["false_negatives_truth"]
    before = estimates(comparison, "false_negatives_per_anchor")
    left = estimates(comparison, "false_negatives_kept_per_anchor")
    rows = tuple(
        (
            name,
            decimal(before[name].mean, 3) if name in before else "–",
            decimal(left[name].mean, 3) if name in left else "by step",
            _mean(comparison.summaries[name], "false_weight", decimal),
            _mean(comparison.summaries[name], "removed_share", percent),
        )
        for name in comparison.summaries
    )
    columns = "method", "met by an image", "left as negatives", "their weight", "pairs removed"
    table = Table(f"False negatives (pairs of the same {truth}) of a batch: means over seeds", columns, rows)
    note = "Before and after what the weighting removes. A weighting that only weighs leaves all of them: see their weight."
    series = {"in the batch": before, "left as negatives": left}
    return intervals("False negatives of an image", series, note=note, xlabel="in a batch"), table


def _difference(comparison: Comparison, name: str, figure: str) -> Estimate:
    found = comparison.differences[name][figure]
    low, high = (None if value is None else 100 * value for value in (found.low, found.high))
    runs, base = values(comparison, name, figure), values(comparison, BASELINE, figure)
    return Estimate(100 * found.mean, low, high, tuple(100 * (a - b) for a, b in zip(runs, base, strict=True)))


def _estimate(estimate: Estimate, digits: int, sign: str = "") -> str:
    def written(value: float) -> str:
        return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")  # no -0.0

    if estimate.low is None or estimate.high is None:
        return written(estimate.mean)
    return f"{written(estimate.mean)} [{written(estimate.low)}, {written(estimate.high)}]"


def _spread(summary: Summary) -> str:
    return decimal(summary.mean, 3) + ("" if summary.spread is None else f" ± {decimal(summary.spread, 3)}")


def _mean(summaries: Mapping[str, Any], figure: str, write: Any) -> str:
    return str(write(summaries[figure].mean)) if figure in summaries else "by step"
