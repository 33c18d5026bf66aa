"""Put a report together: templates, style and script in one page that needs nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clip_negatives import __version__
from clip_negatives.report import formats

TEMPLATES = files("clip_negatives.report") / "templates"


@dataclass(frozen=True, slots=True)
class Table:
    """Hold a table as it is shown.

    Attributes:
        caption: what it shows.
        columns: heads of the columns; the first column has the heads of the rows.
        rows: cells, as text.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Hold a plot and what it shows in other ways.

    Attributes:
        title: what it shows.
        drawing: the SVG, with a text alternative in it, drawn by `clip_negatives.report.charts.drawing`.
        note: how to read it.
        table: the figures behind it; None where a table beside it has them.
    """

    title: str
    drawing: str
    note: str
    table: Table | None = None


def render(template: str, **values: Any) -> str:
    """Return the page of a template.

    Every value is escaped but style, script and drawings. The page forbids itself the network, and any script but its own,
    which is known by its digest.

    Args:
        template: name of a file among the templates.
        values: what the template shows.
    """
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return (
        environment()
        .get_template(template)
        .render(
            style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            version=__version__,
            caption_letters=formats.CAPTION,
            **values,
        )
    )


@functools.cache
def environment() -> Environment:
    """Return what makes pages of the templates: it escapes every value, and knows no value that is not given."""
    found = Environment(
        loader=PackageLoader("clip_negatives.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for written in (formats.percent, formats.decimal, formats.count, formats.caption):
        found.filters[written.__name__] = written
    found.globals["plural"] = formats.plural
    return found
