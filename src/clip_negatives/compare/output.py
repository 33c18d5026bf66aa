"""Tables for the terminal and a plot of a comparison."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from clip_negatives.compare.methods import BASELINE, CONTROL
from clip_negatives.compare.results import DIRECTIONS, TOP_K, Comparison
from clip_negatives.compare.settings import Setting
from clip_negatives.compare.tuning import Tuned
from clip_negatives.metrics.statistics import Gain
from clip_negatives.printing import printable
from clip_negatives.storage.ownership import replaced_file

WIDTH = 80  # of all tables, in columns


def settings_table(settings: Sequence[Setting]) -> Table:
    """Return the settings of all runs, and where they come from."""
    table = Table(title="Settings of all runs", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    for column in ("open_clip's option", "value", "source"):
        table.add_column(column, overflow="fold")
    for setting in settings:
        table.add_row(setting.option, setting.value, setting.source)
    return table


def sentences(comparison: Comparison) -> list[str]:
    """Return the verdict and what was tuned, as wrapped lines of text."""
    tuned = [str(Tuned(**choice)) for choice in comparison.setting["tuning"]]
    return [line for text in (comparison.verdict, *tuned) for line in textwrap.wrap(printable(text), WIDTH)]


def results_table(comparison: Comparison) -> Table:
    """Return temperature, Rank@1, MRR and gain by method, text to image, at most `WIDTH` columns wide."""
    seeds, queries = comparison.setting["seeds"], comparison.runs[0]["queries"]
    reused = comparison.setting["runs_reused"]
    table = Table(
        title=f"Text to image, in %, {seeds} seeds, {queries:,} queries",
        caption=f"Gain in MRR over {BASELINE}, with simultaneous 95 % confidence intervals. "
        f"{reused} of {len(comparison.runs)} runs were reused.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        width=WIDTH,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", overflow="fold")
    for name in ("temper-\nature", "Rank@1", "MRR", "gain, % [95 %]"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    temperatures = {run["method"]["name"]: run["method"]["temperature"] for run in comparison.runs}
    for name, figures in comparison.summaries.items():
        temperature = temperatures[name]
        means = (f"{100 * figures[f'text_to_image_{score}'].mean:.1f}" for score in ("rank_1", "mrr"))
        gain = comparison.gains.get(name)
        table.add_row(
            name, "learned" if temperature is None else f"{temperature:g}", *means, _numbers(gain), judgement(name, gain)
        )
    return table


def judgement(name: str, gain: Gain | None) -> str:
    """Return the verdict on a row."""
    if name == BASELINE:
        return "baseline"
    if gain is None or gain.low is None:
        return "unknown"
    return "control" if name == CONTROL else {1: "better", 0: "unclear", -1: "worse"}[gain.sign]


def plot(comparison: Comparison, file: Path) -> None:
    """Plot MRR and Rank@1, 5 and 10 by method, a dot per seed and a bar at the mean; write the file atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(comparison.summaries)
    scores = {"mrr": "MRR", **{f"rank_{k}": f"Rank@{k}" for k in TOP_K}}
    figure = Figure(figsize=(3.4 * len(scores), 0.5 * len(names) * 2 + 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(scores), sharey=True).flat
    for axis, ((direction, label), score) in zip(axes, itertools.product(DIRECTIONS.items(), scores), strict=True):
        field = f"{direction}_{score}"
        for place, name in enumerate(names):
            values = [100 * run[field] for run in comparison.runs if run["method"]["name"] == name]
            axis.plot(values, [place] * len(values), "o", alpha=0.5, color=f"C{place % 10}")
            axis.plot(100 * comparison.summaries[name][field].mean, place, "|", markersize=18, color=f"C{place % 10}")
        axis.axvline(100 * comparison.summaries[BASELINE][field].mean, color="0.6", linewidth=1, linestyle=":")
        axis.set_title(f"{label}, {scores[score]}", fontsize=10)
        axis.set_yticks(range(len(names)), [printable(name) for name in names])
        axis.set(xlabel="%", ylim=(len(names) - 0.5, -0.5))
    figure.suptitle(f"Dots: {comparison.setting['seeds']} seeds. Bars: mean. Dotted: mean of {BASELINE}.", fontsize=10)
    with replaced_file(file) as partial:
        figure.savefig(partial, format=file.suffix.removeprefix("."), dpi=150)


def _numbers(gain: Gain | None) -> str:
    if gain is None:
        return ""
    interval = "" if gain.low is None or gain.high is None else f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return f"{100 * gain.estimate:+.1f}{interval}"
