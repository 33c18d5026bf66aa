"""Show a comparison: a table for the terminal, a plot."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from clip_negatives.atomic import replaced_file
from clip_negatives.compare.methods import BASELINE
from clip_negatives.compare.statistics import Difference, Summary
from clip_negatives.compare.study import Comparison

DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}


def ranks_table(comparison: Comparison) -> Table:
    """Return Rank@k by method: mean and spread over seeds, and the paired difference of Rank@1 to the baseline."""
    seeds, queries = comparison.setting["seeds"], comparison.runs[0]["queries"]
    title = f"Rank@k in %, mean ± standard deviation over {seeds} seeds, {queries} queries"
    table = Table(title=title, caption=_chance(comparison))
    table.add_column("method", no_wrap=True)
    for direction in DIRECTIONS.values():
        for k in (1, 5, 10):
            table.add_column(f"{direction}\n@{k}", justify="right")
        table.add_column(f"@1 − {BASELINE}\n[95 % interval]", justify="right")
    for name, figures in comparison.summaries.items():
        cells = []
        for direction in DIRECTIONS:
            cells += [_percent(figures[f"{direction}_rank_{k}"]) for k in (1, 5, 10)]
            difference = comparison.differences.get(name, {}).get(f"{direction}_rank_1")
            cells.append(_points(difference))
        table.add_row(name, *cells)
    return table


def cost_table(comparison: Comparison) -> Table:
    """Return time, memory and false negatives by method."""
    table = Table(title="Cost, and what became of the false negatives (pairs of one item in a batch)")
    for column in (
        "method",
        "seconds a step",
        "peak memory MiB",
        "false negatives\nper anchor",
        "left",
        "their weight",
        "pairs removed",
    ):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column == "method")
    for name, figures in comparison.summaries.items():
        table.add_row(
            name,
            _figure(figures, "seconds_per_step", ".3f", otherwise="\N{EN DASH}"),
            f"{figures['peak_memory_mib'].mean:.0f}",
            f"{figures['false_negatives_per_anchor'].mean:.2f}",
            _figure(figures, "false_negatives_kept_per_anchor", ".2f"),
            _figure(figures, "false_weight", ".2f"),
            _figure(figures, "removed_share", ".1%"),
        )
    return table


def _figure(figures: dict[str, Summary], field: str, form: str, *, otherwise: str | None = None) -> str:
    """Return a figure that not every method has: some decide at each step, and without false negatives none has a weight."""
    if field in figures:
        return format(figures[field].mean, form)
    return otherwise or ("by step" if "removed_share" not in figures else "\N{EN DASH}")


def plot(comparison: Comparison, file: Path) -> None:
    """Write a picture of Rank@1, 5 and 10 by method: a dot for each seed, a bar at the mean; atomically.

    Raises:
        ArtifactError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(comparison.summaries)
    figure = Figure(figsize=(3.4 * 3, 0.5 * len(names) * 2 + 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharey=True)
    for row, (direction, label) in enumerate(DIRECTIONS.items()):
        for column, k in enumerate((1, 5, 10)):
            axis, field = axes[row][column], f"{direction}_rank_{k}"
            for place, name in enumerate(names):
                values = [100 * one[field] for one in comparison.runs if one["method"]["name"] == name]
                axis.plot(values, [place] * len(values), "o", alpha=0.5, color=f"C{place % 10}")
                axis.plot(100 * comparison.summaries[name][field].mean, place, "|", markersize=18, color=f"C{place % 10}")
            axis.axvline(100 * comparison.summaries[BASELINE][field].mean, color="0.6", linewidth=1, linestyle=":")
            axis.set_title(f"{label}, Rank@{k}", fontsize=10)
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.set_xlabel("%")
    seeds = comparison.setting["seeds"]
    figure.suptitle(f"Dots: {seeds} seeds. Bars: mean. Dotted: mean of {BASELINE}.", fontsize=10)
    with replaced_file(file) as partial:
        figure.savefig(partial, format=file.suffix.removeprefix("."), dpi=150)


def _percent(summary: Summary) -> str:
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _points(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.1f}"
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _chance(comparison: Comparison) -> str:
    one = comparison.runs[0]
    return "By chance: " + ", ".join(f"@{k} {100 * one[f'chance_rank_{k}']:.2f}" for k in (1, 5, 10))
