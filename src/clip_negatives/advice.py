"""Advice in error messages that the user can follow: names of arguments, and remedies for errors of the operating system."""

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
    """In this block, `argument` returns these names, such as ``{"separator": "--csv-separator"}``."""
    token = _names.set({**_names.get({}), **names})
    try:
        yield
    finally:
        _names.reset(token)


def argument(name: str, python: str = "") -> str:
    """Return how the user writes an argument: as an option of the running command, or else as in Python (default: ``name=``).

    Examples:
        >>> with named({"separator": "--csv-separator"}):
        ...     argument("separator", "Columns(separator=...)")
        '--csv-separator'
        >>> argument("separator", "Columns(separator=...)")
        'Columns(separator=...)'
    """
    return _names.get({}).get(name, python or f"{name}=")


def remedies(error: OSError, *more: str) -> str:
    """Return the remedies for an error of the operating system, then `more`, as a sentence; "" without any."""
    own = [REMEDIES[error.errno]] if error.errno in REMEDIES else []
    sentence = ", or ".join([*own, *more])
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""
