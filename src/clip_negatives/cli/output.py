"""Output of the commands: lines and tables, with control characters escaped."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from clip_negatives.printing import printable


def echo(text: str, **style: Any) -> None:
    """Print a line; `style` has the arguments of `click.secho`, such as ``err`` and ``fg``."""
    click.secho(printable(text), **style)


class PrintableConsole(Console):
    """A rich console that escapes control characters in strings; it prints a `Text` unchanged."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as a `Text`, with control characters escaped."""
        return super().render_str(printable(text), **options)


def console(*, stderr: bool = False) -> Console:
    """Return a console for stdout or stderr, without markup; unless it is a terminal, it is wide enough for all columns."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream is not None and stream.isatty() else 160
    return PrintableConsole(width=width, markup=False, emoji=False, stderr=stderr)
