"""Heat maps of gains: methods as rows, data sets as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sections import save_svg
from tables import significant

CLIPPED = 25  # percent; a stronger gain has the same colour, so that one outlier does not hide the others
PALETTE = LinearSegmentedColormap.from_list("gains", ["#e08a73", "#ffffff", "#6fbf9b"])


def heat_map(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
    columns: Sequence[str],
    target: Path,
    *,
    rules: Sequence[int] = (),
    heading: Sequence[str] = (),
) -> None:
    """Draw gains in percent as coloured cells; a frame marks a significant one, rules separate groups of columns."""
    figure = Figure(figsize=(3.4 + 0.78 * len(columns), 0.27 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    colours, scale = PALETTE, Normalize(-CLIPPED, CLIPPED)
    for y, cells in enumerate(rows.values()):
        for x, column in enumerate(columns):
            if column in cells:
                one = cells[column]
                axes.add_patch(Rectangle((x, y), 1, 1, color=colours(scale(100 * one["gain"])), lw=0))
                text = f"{100 * one['gain']:+.0f}".replace("-", "\N{MINUS SIGN}")
                axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=8)
                if significant(one):
                    axes.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, fill=False, ec="0.1", lw=1.2))
    for rule in rules:
        axes.axvline(rule, color="0.2", lw=1.5)
    for start, end, text in zip((0, *rules), (*rules, len(columns)), heading, strict=False):
        axes.text((start + end) / 2, -2.4, text, ha="center", fontsize=9, weight="bold")
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, fontsize=7)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [_short(name) for name in rows], fontsize=8)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    save_svg(figure, target)


def _short(name: str, limit: int = 44) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
