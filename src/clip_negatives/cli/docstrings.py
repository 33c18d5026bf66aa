"""Docstrings as text for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

SECTIONS = ("Args:", "Attributes:", "Raises:", "Examples:")  # each line at their first indentation is an entry


def summary(docstring: str) -> str:
    """Return the first sentence, on one line.

    Examples:
        >>> summary("Weight 1 for every pair: the loss is `open_clip.ClipLoss`. Sign: none.")
        'Weight 1 for every pair: the loss is open_clip.ClipLoss.'
    """
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return _without_marks(re.split(r"(?<=[.?!])\s", paragraph, maxsplit=1)[0])


def wrapped(docstring: str, width: int) -> Iterator[str]:
    """Yield the lines of a docstring in Google style, wrapped at `width`, without the marks of code."""
    for line in _joined(docstring):
        indent = _indent(line)
        hanging = indent + (2 if line.strip().startswith("* ") else 4 if indent else 0)
        lines = textwrap.wrap(_without_marks(line), width, subsequent_indent=" " * hanging, break_on_hyphens=False)
        yield from lines or [""]


def _joined(docstring: str) -> list[str]:
    """Return the lines, after joining the lines of each paragraph, list item and section entry."""
    lines: list[str] = []
    section = previous = ""
    for line in docstring.splitlines():
        text = line.strip()
        section = text if text == line and text else section
        is_entry = section in SECTIONS and _indent(line) <= _indent(previous)
        if not text or not previous or text.startswith("* ") or previous in SECTIONS or is_entry:
            lines.append(line)
        else:
            lines[-1] += f" {text}"
        previous = lines[-1]
    return lines


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _without_marks(text: str) -> str:
    return text.replace("`", "")
