"""How a reader is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from clip_negatives.errors import ClipNegativesError


@dataclass(frozen=True)
class Reader:
    """Hold how a reader is tried.

    Attributes:
        what: what is changed, for the table.
        errors: what it may raise; all else is a loss.
        make: makes an input: its kind, which is the ending of its file in the corpus, and its bytes.
        read: reads it, uses what it was given, makes sure that nothing is left behind, and tells whether it was left aside.
        otherwise: what is done with what is left aside.
    """

    what: str
    errors: tuple[type[ClipNegativesError], ...]
    make: Callable[[Random], tuple[str, bytes]]
    read: Callable[[str, bytes], bool | None]
    otherwise: str = ""

    @property
    def promise(self) -> str:
        """Return what it may do, for the table."""
        names = [error.__name__ for error in self.errors]
        return " or ".join(["read", *filter(None, [self.otherwise]), *names])
