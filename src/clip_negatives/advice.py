"""Parts of error messages: names of arguments as the user writes them, and remedies for errors of the operating system."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_names: ContextVar[Mapping[str, str]] = ContextVar("names")

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free disk space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions"),
    errno.EIO: "check the disk, which may be full or damaged",
}


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Make `argument` return these names in the block, such as ``{"separator": "--csv-separator"}``."""
    token = _names.set({**_names.get({}), **names})
    try:
        yield
    finally:
        _names.reset(token)


def argument(name: str, python: str = "") -> str:
    """Return an argument as the user writes it: an option of the running command, else `python` (default: ``name=``).

    Examples:
        >>> with named({"separator": "--csv-separator"}):
        ...     argument("separator", "Columns(separator=...)")
        '--csv-separator'
        >>> argument("separator", "Columns(separator=...)")
        'Columns(separator=...)'
    """
    return _names.get({}).get(name, python or f"{name}=")


def remedies(error: OSError, *more: str) -> str:
    """Return a sentence with the remedy for an error of the operating system, if known, and `more`; "" without remedies."""
    known = [REMEDIES[error.errno]] if error.errno in REMEDIES else []
    sentence = ", or ".join([*known, *more])
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""
