"""Line charts and dot plots as inline SVG; the style sheet of the page sets their colours, light or dark."""

from __future__ import annotations

import hashlib
import html
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from clip_negatives.printing import printable
from clip_negatives.report.page import Plot, Table

WIDTH = 350  # of a plot in points, with text of 10.5 points: a phone shows the plot without scaling
NAME_WIDTH = 20  # characters of a method's name on one line

INK, MUTED, LINE = "#010101", "#010102", "#010103"
SERIES = tuple(f"#02020{number}" for number in range(8))
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", **{colour: f"--series-{colour[-1]}" for colour in SERIES}}
"""Placeholder colours, and the CSS variables that replace them."""

DASHED = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 3))}  # line that marks a value
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)))  # line styles; more lines than colours use the next style

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clip-negatives",  # the same data give the same page
    "font.size": 10.5,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 9.5),
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "text.color": INK,
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), MUTED),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), LINE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "none"),
}


class Line(NamedTuple):
    """A line and, optionally, the band around it."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


class Estimate(NamedTuple):
    """A mean over runs, its interval (None for a single run) and the value of each run."""

    mean: float
    low: float | None
    high: float | None
    runs: Sequence[float]


def plot(kind: str, title: str, note: str, paint: Callable[[Any], None], *, height: float, table: Table | None = None) -> Plot:
    """Return the plot that `paint` draws on an empty figure, `height` points high; `kind` begins its text alternative."""
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        paint(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(title, _inline(stream.getvalue(), f"{kind}. {title}. {note}"), note, table)


def plain(text: str) -> str:
    """Return a text with escaped dollar signs: matplotlib reads text between dollar signs as a formula."""
    return text.replace("$", r"\$")


def lines(
    title: str,
    series: Mapping[str, Line],
    note: str,
    *,
    log: str = "",
    marked: float | None = None,
    points: bool = False,
    table: Table | None = None,
    height: float = 220,
    **labels: str,
) -> Plot:
    """Return a line chart; `log` names the logarithmic axes, `marked` is the x of a dashed line, `points` draws markers."""

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        for place, (name, line) in enumerate(series.items()):
            colour, dashes = SERIES[place % len(SERIES)], DASHES[place // len(SERIES) % len(DASHES)]
            label, marker = plain(printable(name)), "o" if points else ""
            axis.plot(line.x, line.y, color=colour, linestyle=dashes, label=label, marker=marker, ms=4)
            if line.low is not None and line.high is not None:
                axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        if marked is not None:
            axis.axvline(marked, **DASHED)
        axis.set(**labels, **{f"{name}scale": "log" for name in log})
        if "y" in log:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")  # 100, not 10²
            axis.yaxis.set_minor_formatter(NullFormatter())
        if "x" in log and points:
            ticks = sorted({value for line in series.values() for value in line.x})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xticks([], minor=True)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2)

    return plot("Line chart", title, note, paint, height=height, table=table)


def intervals(
    title: str,
    series: Mapping[str, Mapping[str, Estimate]],
    note: str,
    xlabel: str,
    *,
    table: Table | None = None,
    signed: bool = False,
) -> Plot:
    """Return a plot of each series by method: mean, interval and runs. If `signed`, a line marks 0; else x starts at 0."""
    names = list(dict.fromkeys(name for estimates in series.values() for name in estimates))
    labels = [textwrap.wrap(printable(name), NAME_WIDTH) for name in names]

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        step = 0.62 / max(1, len(series))
        for place, (label, estimates) in enumerate(series.items()):
            colour = SERIES[place % len(SERIES)]
            shift = (place - (len(series) - 1) / 2) * step
            for y, estimate in ((names.index(name) + shift, estimate) for name, estimate in estimates.items()):
                axis.plot(estimate.runs, [y] * len(estimate.runs), "|", color=colour, ms=7, markeredgewidth=1.1)
                if estimate.low is not None:
                    axis.plot(estimate[1:3], [y, y], "-", color=colour, linewidth=1.6, solid_capstyle="butt")
                axis.plot([estimate.mean], [y], "o", color=colour, ms=6)
            axis.plot([], [], "o", color=colour, ms=5, label=label)
        axis.set_yticks(range(len(names)), [plain("\n".join(label)) for label in labels])
        axis.set(xlabel=xlabel, ylim=(len(names) - 0.5, -0.5))
        if signed:
            axis.axvline(0, color=MUTED, linewidth=1)
        else:
            axis.set_xlim(0, 1.05 * axis.get_xlim()[1] or 1)
        axis.grid(visible=False, axis="y")
        for row in range(1, len(names)):
            axis.axhline(row - 0.5, color=LINE, linewidth=0.6)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=3)

    height = 70 + len(names) * (14 + 12 * max(len(series), *map(len, labels)))
    return plot("Dot plot", title, note, paint, height=height, table=table)


def _inline(svg: str, name: str) -> str:
    """Return the SVG for use in a page: with unique ids, and with colours and font of the page."""
    prefix = f"c{hashlib.sha256(f'{name} {svg}'.encode()).hexdigest()[:8]}-"
    box = re.search(r'viewBox="([^"]+)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([\w-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = re.sub(r'font-family: [^;"]*', "font-family: var(--sans)", body)
    body = re.sub(r'font: ([^;"]*?[\d.]+px) [^;"]*', r"font: \1 var(--sans)", body)  # matplotlib < 3.10
    body = re.sub("|".join(VARIABLES), lambda match: f"var({VARIABLES[match[0]]})", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)  # finer than a pixel
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{html.escape(printable(name))}">'
    return head + re.sub(r"\s*\n\s*", " ", body).strip()
