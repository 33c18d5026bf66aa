"""Text for terminals and logs. Control characters are escaped, so data can neither control a terminal nor fake a log line."""

from __future__ import annotations

import logging
import unicodedata
import warnings

# Unicode categories: control and format characters, halves of surrogate pairs, line and paragraph separators.
ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# Format characters in ordinary texts: joiners (in emoji, and in Persian or Indic words), and tags (in emoji flags).
KEPT = frozenset(map(chr, (0x200C, 0x200D, *range(0xE0020, 0xE0080))))


def printable(text: str) -> str:
    r"""Return a text on one line, with control characters and text direction controls escaped.

    Examples:
        >>> print(printable("a\x1b[2Jb\nc\u202ed"))
        a\x1b[2Jb\nc\u202ed
        >>> printable("schön 雪 👩‍🔬 سلام")
        'schön 雪 👩‍🔬 سلام'
    """
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode() for char in text)


def warn(message: str, *, stacklevel: int) -> None:
    """Issue a `UserWarning` with a printable message; `stacklevel` counts from the caller of this function."""
    warnings.warn(printable(message), stacklevel=stacklevel + 1)


def log(message: str, level: int = logging.WARNING) -> None:
    """Log a printable message; in a training run, open_clip's handlers write it to the terminal and to the log of the run."""
    logging.getLogger("clip_negatives").log(level, "clip-negatives: %s", printable(message), stacklevel=2)


def _is_shown(char: str) -> bool:
    return unicodedata.category(char) not in ESCAPED or char in KEPT
