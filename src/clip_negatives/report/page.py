"""Tables, plots, formats of numbers and texts, and the HTML of a report."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clip_negatives import __version__
from clip_negatives.printing import printable

TEMPLATES, LIBRARIES = (files("clip_negatives.report") / name for name in ("templates", "libraries"))

CAPTION = 280  # characters of a text that are shown


class Table(NamedTuple):
    """A table of texts; the first cell of each row is the row head."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Plot(NamedTuple):
    """A plot as SVG with its explanation and a table of its values (None if the page has the table elsewhere)."""

    title: str
    drawing: str
    note: str
    table: Table | None = None


def render(template: str, *, libraries: Sequence[str] = (), scripts: Sequence[str] = ("page.js",), **values: Any) -> str:
    """Return the HTML of a template; all values are escaped, except style, scripts and drawings.

    Args:
        template: name of the template.
        libraries: scripts in ``report/libraries``, which run first.
        scripts: scripts in ``report/templates``.
        values: values of the template.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    files = [*(LIBRARIES / name for name in libraries), *(TEMPLATES / name for name in scripts)]
    code = [file.read_text(encoding="utf-8") for file in files]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in code]
    return environment().get_template(template).render(style=style, scripts=code, script_digests=digests, **values)


@functools.cache
def environment() -> Environment:
    """Return the template environment: HTML and control characters in values are escaped, unknown names are errors."""
    loader = PackageLoader("clip_negatives.report", "templates")
    templates = Environment(
        loader=loader,
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(percent=percent, decimal=decimal, count=count, isolated=isolated)
    templates.globals.update(plural=plural, version=__version__, caption_characters=CAPTION)
    return templates


def _finalize(value: Any) -> Any:
    """Escape control characters in a value of a template, unless the value is HTML."""
    return value if hasattr(value, "__html__") else printable(str(value))


def isolated(text: str) -> Markup:
    """Return the HTML of a text from the data; its direction does not change the order of the text around it."""
    return Markup("<bdi>{}</bdi>").format(printable(text))


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share, 0 .. 1, as a percentage; None as a dash."""
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def decimal(value: float | None, digits: int = 2) -> str:
    """Format a number; None as a dash."""
    return "–" if value is None else with_minus(f"{value:,.{digits}f}")


def with_minus(numbers: str) -> str:
    """Return numbers with minus signs instead of hyphens."""
    return numbers.replace("-", "−")


def count(value: float) -> str:
    """Format a whole number with commas."""
    return f"{value:,.0f}"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Format a number with its noun."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def caption(text: str) -> str:
    """Shorten a text to `CAPTION` characters."""
    return text if len(text) <= CAPTION else f"{text[: CAPTION - 1].rstrip()}…"
