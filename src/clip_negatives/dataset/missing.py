"""Tars that do not exist or cannot be reached: how many `prepare` may leave out, and the errors for more."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clip_negatives.advice import argument
from clip_negatives.errors import InputError, MissingShardError

NUMBER = re.compile(r"(\d+)(%?)|(\d*\.\d+)%", re.ASCII)


@dataclass(frozen=True, slots=True)
class MissingLimit:
    """Largest number of tars that may be missing.

    Attributes:
        spec: a number of tars, such as 3, or a percentage of all tars, such as 1%.
        repair: how to accept {} missing tars, if the running command has no option for it.
    """

    spec: int | str = 0
    repair: str = ""

    def __post_init__(self) -> None:
        match = NUMBER.fullmatch(str(self.spec).strip())
        is_percentage = str(self.spec).strip().endswith("%")
        if match is None or (is_percentage and float(str(self.spec).strip().removesuffix("%")) > 100):
            name = argument("max_missing_shards")
            raise InputError(f"{name}: {str(self.spec)!r} is not a number of tars. Write for example 3 or 1%.")

    def of(self, n_shards: int) -> int:
        """Return the largest number of `n_shards` tars that may be missing.

        >>> MissingLimit("1%").of(250), MissingLimit(3).of(250)
        (2, 3)
        """
        text = str(self.spec).strip()
        return int(float(text.removesuffix("%")) * n_shards / 100 + 1e-9) if text.endswith("%") else int(text)

    def check(self, faults: list[str], n_shards: int) -> None:
        """Raise MissingShardError if more tars are missing than allowed; `faults` says of each what is wrong."""
        allowed = self.of(n_shards)
        if len(faults) > allowed:
            raise self.error(faults, f"{len(faults)} of {n_shards} tars are missing, more than {allowed}")

    def error(self, faults: list[str], count: str = "") -> MissingShardError:
        """Return the error for missing tars, which names the option to leave them out."""
        first = f"{count}. The first: {faults[0]}" if count and len(faults) > 1 else faults[0]
        number, tars = len(faults), "this tar" if len(faults) == 1 else "these tars"
        accept = self.repair.format(number) or f"To leave out {tars}, use {_option(number)}."
        return MissingShardError(f"{first} {accept}")


@contextmanager
def naming_option() -> Iterator[None]:
    """Add to the error for a missing tar the option to leave it out."""
    try:
        yield
    except MissingShardError as error:
        raise MissingLimit().error([str(error)]) from error


def digest_of_missing(name: str) -> str:
    """Return the digest of a part that is missing."""
    return hashlib.sha256(f"missing\0{name}".encode("utf-8", "surrogateescape")).hexdigest()


def _option(number: int) -> str:
    option = argument("max_missing_shards")
    return f"{option} {number}" if option.startswith("-") else f"{option}{number}"
