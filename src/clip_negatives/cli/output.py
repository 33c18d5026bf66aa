"""Output of the commands: lines and tables, with control characters escaped, and JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from clip_negatives.printing import printable


def echo(text: str, **style: Any) -> None:
    """Print a line; `style` has the arguments of `click.secho`, such as ``err`` and ``fg``."""
    click.secho(printable(text), **style)


def write_text(text: str) -> None:
    """Write a text of ours to stdout as it is, such as a script."""
    click.echo(text)


def is_stdout(file: Path | None) -> bool:
    """Return whether the file of ``--json`` is ``-``: then stdout has the JSON only, and everything else goes to stderr."""
    return str(file) == "-"


def write_json(file: Path | None, content: Mapping[str, Any]) -> None:
    """Write the result of a command to the file of ``--json``, or to stdout if it is ``-``."""
    from clip_negatives.storage.output_file import json_text, write_json_output

    if is_stdout(file):
        write_text(json_text(content))
    elif file is not None:
        write_json_output(file, content)


class PrintableConsole(Console):
    """A rich console that escapes control characters in strings; it prints a `Text` unchanged."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as a `Text`, with control characters escaped."""
        return super().render_str(printable(text), **options)


def console(*, stderr: bool = False, width: int = 80) -> Console:
    """Return a console for stdout or stderr, without markup; `width` is that of a pipe or file."""
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    return PrintableConsole(stderr=stderr, width=None if is_terminal else width, markup=False, emoji=False)
