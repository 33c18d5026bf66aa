"""Parts of the generated pages: Markdown with fields of `str.format`, tables and figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sections(file: Path) -> dict[str, str]:
    """Return the parts of a file by name: each follows a line ``<!-- name -->``."""
    return dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=<!-- \w+ -->|\Z)", file.read_text(), re.DOTALL))


def table(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)) + "\n"


def save_svg(figure: Figure, file: Path) -> None:
    """Write a figure as SVG, the same bytes every time."""
    import matplotlib as mpl

    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "clip-negatives"}):
        figure.savefig(file, metadata={"Date": None})
