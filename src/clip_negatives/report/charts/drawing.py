"""Draw with matplotlib for a page of two themes: colours are names that the page's style gives a value."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Callable
from typing import Any

WIDTH = 350
"""Width of a plot in the units of its text, which is 10.5: as wide as a telephone, so that the text stays readable there."""

INK, MUTED, LINE = "#010101", "#010102", "#010103"
SERIES = tuple(f"#02020{number}" for number in range(8))

VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES)
}
"""Colours that nobody would draw with, and the variables of the page that take their place."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clip-negatives",  # the same page from the same data
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw(paint: Callable[[Any], None], *, name: str, height: float) -> str:
    """Return what `paint` draws on a figure as SVG for the page.

    Args:
        paint: takes an empty `matplotlib.figure.Figure`.
        name: what it shows, for those who do not see it.
        height: height in the units of its text, see `WIDTH`.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(stream.getvalue(), name)


def plain(text: str) -> str:
    """Return a text as matplotlib takes it, which would read formulas between dollars."""
    return text.replace("$", r"\$")


def _inline(svg: str, name: str) -> str:
    """Return the SVG as a part of a page: no header, ids of its own, colours and fonts of the page."""
    prefix = f"c{hashlib.sha256(f'{name} {svg}'.encode()).hexdigest()[:8]}-"
    box = re.search(r'viewBox="([^"]+)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([\w-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = re.sub(r'font-family: [^;"]*', "font-family: var(--sans)", body)
    body = re.sub(r'font: ([^;"]*?[\d.]+px) [^;"]*', r"font: \1 var(--sans)", body)  # as older versions write it
    body = re.sub("|".join(VARIABLES), lambda found: f"var({VARIABLES[found[0]]})", body)
    # Hundredths of a unit are more than a screen shows, at half the size.
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{html.escape(name)}">'
    return head + re.sub(r"\s*\n\s*", " ", body).strip()
