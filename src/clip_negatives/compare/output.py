"""Tables for the terminal and a plot of a comparison."""

from __future__ import annotations

import itertools
from pathlib import Path

from rich.table import Table
from rich.text import Text

from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.statistics import Difference, Summary
from clip_negatives.compare.study import Comparison
from clip_negatives.printing import printable
from clip_negatives.storage.ownership import replaced_file

DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}


def ranks_table(comparison: Comparison) -> Table:
    """Return Rank@k by method: mean and spread over seeds, and the paired difference of Rank@1 to the baseline."""
    seeds, run = comparison.setting["seeds"], comparison.runs[0]
    table = Table(
        title=f"Rank@k in %, mean ± standard deviation over {seeds} seeds, {run['queries']} queries",
        caption="By chance, in %: " + ", ".join(f"Rank@{k} {100 * run[f'chance_rank_{k}']:.2f}" for k in (1, 5, 10)),
    )
    table.add_column("method", no_wrap=True)
    for label in DIRECTIONS.values():
        for k in (1, 5, 10):
            table.add_column(Text(f"{label}\n@{k}"), justify="right")
        table.add_column(Text(f"@1 − {BASELINE}\n[95 % interval]"), justify="right")
    for name, figures in comparison.summaries.items():
        cells = []
        for direction in DIRECTIONS:
            cells += [_percent(figures[f"{direction}_rank_{k}"]) for k in (1, 5, 10)]
            cells.append(_points(comparison.differences.get(name, {}).get(f"{direction}_rank_1")))
        table.add_row(name, *cells)
    return table


def cost_table(comparison: Comparison) -> Table:
    """Return time, memory and false negatives by method."""
    columns = {
        "seconds\nper step": ("seconds_per_step", ".3f"),
        "peak memory\nMiB": ("peak_memory_mib", ".0f"),
        "false negatives\nper anchor": ("false_negatives_per_anchor", ".2f"),
        "kept\nper anchor": ("false_negatives_kept_per_anchor", ".2f"),
        "weight of a\nfalse negative": ("false_weight", ".2f"),
        "pairs\nremoved": ("removed_share", ".1%"),
    }
    table = Table(
        title="Cost and false negatives (pairs of one item in a batch)",
        caption="Weight relative to an ordinary incorrect pair: 1 = no change, 0 = removed.",
    )
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify="right")
    for name, figures in comparison.summaries.items():
        varies = "removed_share" not in figures  # the weights are computed at each step
        cells = []
        for field, format_spec in columns.values():
            missing = "varies by step" if varies and field != "seconds_per_step" else "–"
            cells.append(format(figures[field].mean, format_spec) if field in figures else missing)
        table.add_row(name, *cells)
    return table


def plot(comparison: Comparison, file: Path) -> None:
    """Plot Rank@1, 5 and 10 by method, a dot per seed and a bar at the mean; write the file atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(comparison.summaries)
    figure = Figure(figsize=(3.4 * 3, 0.5 * len(names) * 2 + 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharey=True).flat
    for axis, ((direction, label), k) in zip(axes, itertools.product(DIRECTIONS.items(), (1, 5, 10)), strict=True):
        field = f"{direction}_rank_{k}"
        for place, name in enumerate(names):
            values = [100 * run[field] for run in comparison.runs if run["method"]["name"] == name]
            axis.plot(values, [place] * len(values), "o", alpha=0.5, color=f"C{place % 10}")
            axis.plot(100 * comparison.summaries[name][field].mean, place, "|", markersize=18, color=f"C{place % 10}")
        axis.axvline(100 * comparison.summaries[BASELINE][field].mean, color="0.6", linewidth=1, linestyle=":")
        axis.set_title(f"{label}, Rank@{k}", fontsize=10)
        axis.set_yticks(range(len(names)), [printable(name) for name in names])
        axis.set(xlabel="%", ylim=(len(names) - 0.5, -0.5))
    figure.suptitle(f"Dots: {comparison.setting['seeds']} seeds. Bars: mean. Dotted: mean of {BASELINE}.", fontsize=10)
    with replaced_file(file) as partial:
        figure.savefig(partial, format=file.suffix.removeprefix("."), dpi=150)


def _percent(summary: Summary) -> str:
    return f"{100 * summary.mean:.1f}" + ("" if summary.spread is None else f" ± {100 * summary.spread:.1f}")


def _points(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = difference.low, difference.high
    return f"{100 * difference.mean:+.1f}" + ("" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")
