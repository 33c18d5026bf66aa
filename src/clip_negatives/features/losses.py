"""Samples that were lost: broken samples, and the estimated rest of torn tars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from clip_negatives.advice import argument
from clip_negatives.dataset.notes import Summary
from clip_negatives.dataset.urls import is_plain
from clip_negatives.errors import DataError, InputError
from clip_negatives.features.store import Record
from clip_negatives.storage.limits import limit
from clip_negatives.storage.safe_reading import parse_json
from clip_negatives.storage.shards import piped_tar

NAMES_SHOWN = 3
SIZES = "sizes.json"  # file of webdataset beside the shards: number of samples of each shard


class TornPart(NamedTuple):
    """A torn tar, and the estimated number of its lost samples.

    Attributes:
        name: path or URL of the tar.
        cause: what is wrong with the tar.
        n_read: number of samples before the damage.
        n_lost: estimated number of lost samples; None if unknown.
        basis: source of the estimate.
    """

    name: str
    cause: str
    n_read: int
    n_lost: int | None
    basis: str

    def __str__(self) -> str:
        n_lost = "an unknown number of" if self.n_lost is None else f"about {self.n_lost}"
        basis = f", estimated from {self.basis}" if self.basis else ""
        return f"{self.cause} after {self.n_read} samples; {n_lost} samples are lost{basis}"


class PartReport(NamedTuple):
    """What was read and lost of a part.

    Attributes:
        n_samples: number of samples that can be used.
        n_broken: number of samples that are left out.
        n_lost: number of those that cannot be read.
        first_broken, first_lost: key and reason of the first of them; None if there is none.
        torn: name and cause of a torn tar, and the share of the file before the damage.
        missing: name of a missing tar, and what is wrong.
        notes: see `clip_negatives.dataset.notes`.
    """

    n_samples: int
    n_broken: int
    n_lost: int
    first_broken: Sequence[str] | None
    first_lost: Sequence[str] | None
    torn: tuple[str, str, float | None] | None
    missing: tuple[str, str] | None
    notes: Summary

    @classmethod
    def of(cls, record: Record) -> PartReport:
        """Return the report from the record of a part."""
        broken, lost = record["broken"], record["lost"]
        counts = record["count"], len(broken), len(lost)
        return cls(
            *counts, next(iter(broken), None), next(iter(lost), None), record["torn"], record["missing"], record["notes"]
        )

    @property
    def n_read(self) -> int:
        """Return the number of samples, also of those that are left out."""
        return self.n_samples + self.n_broken


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of a data set.

    Attributes:
        torn: the torn tars, in order.
        n_usable: number of samples that can be used.
        n_read: number of samples that were read, also of those that are left out.
        n_lost: number of samples that cannot be read, without the rest of torn tars.
        first_lost: key and reason of the first of them.
        missing: name of each missing tar, and what is wrong. Its samples are in no other number.
    """

    torn: Sequence[TornPart]
    n_usable: int
    n_read: int
    n_lost: int
    first_lost: Sequence[str] | None
    missing: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(cls, parts: Sequence[PartReport]) -> Losses:
        """Return the losses of all parts; those of torn tars are estimated from what is known of the tars."""
        whole = [part.n_read for part in parts if part.torn is None and part.missing is None]
        mean = sum(whole) / len(whole) if whole else None
        torn = [_estimated(*part.torn, part.n_read, mean) for part in parts if part.torn is not None]
        first = next((part.first_lost for part in parts if part.first_lost is not None), None)
        n_usable, n_read = (sum(numbers) for numbers in zip(*((part.n_samples, part.n_read) for part in parts), strict=True))
        missing = [(part.missing[0], part.missing[1]) for part in parts if part.missing is not None]
        return cls(torn, n_usable, n_read, sum(part.n_lost for part in parts), first, missing)

    @property
    def n_torn(self) -> int:
        """Return the estimated number of samples in the rest of torn tars, without unknown ones."""
        return sum(part.n_lost or 0 for part in self.torn)

    @property
    def share(self) -> float:
        """Return the share of lost samples, 0 .. 1; 1 if it is unknown."""
        if any(part.n_lost is None for part in self.torn):
            return 1.0
        return (self.n_lost + self.n_torn) / max(1, self.n_read + self.n_torn)

    def check(self, max_lost: float, repair: str = "") -> None:
        """Raise DataError if the share is larger than `max_lost`; `repair` says how to accept the loss."""
        if self.share <= max_lost:
            return
        is_unknown = any(part.n_lost is None for part in self.torn)
        counts = f"{self.n_lost + self.n_torn} of {self.n_read + self.n_torn} samples ({self.share:.1%})"
        lost = "An unknown share of the samples" if is_unknown else counts
        fault = f"{lost} are lost, more than {max_lost:.2%}: {self._causes()}"
        percent = math.ceil(100 * self.share)
        option = argument("max_lost")
        value = f"{option} {percent}%" if option.startswith("-") else f"{option}{percent / 100}"
        again = f"and run the same command again, which keeps the intact parts, or accept the loss with {value}"
        raise DataError(f"{fault}. Repair the data {repair.format(percent) or again}.")

    def _causes(self) -> str:
        """Return the torn tars and the number of broken samples, with the first names."""
        causes = []
        if self.torn:
            names = ", ".join(f"{part.name}: {part}" for part in self.torn[:NAMES_SHOWN])
            more = f", and {len(self.torn) - NAMES_SHOWN} more" if len(self.torn) > NAMES_SHOWN else ""
            causes.append(f"{len(self.torn)} torn tar{'s' * (len(self.torn) > 1)} ({names}{more})")
        if self.first_lost is not None:
            key, reason = self.first_lost
            causes.append(f"{self.n_lost} broken sample{'s' * (self.n_lost > 1)} (first: {key}: {reason})")
        return " and ".join(causes)


def check_share(max_lost: float) -> None:
    """Raise InputError if `max_lost` is not a share."""
    if not 0 <= max_lost <= 1:
        raise InputError(f"Expected a share from 0 to 1 as {argument('max_lost')}, got {max_lost!r}.")


def _estimated(name: str, cause: str, share: float | None, n_read: int, mean: float | None) -> TornPart:
    """Return a torn tar with its losses, estimated from the first basis that is known."""
    tar = (piped_tar(name) or name) if name.startswith("pipe:") else name
    stats = _stats_file(tar)
    of_file = None if share is None or not n_read else n_read / share
    for expected, basis in (
        (_number(stats, "successes"), stats.rpartition("/")[2]),
        (_number(f"{_folder(tar)}{SIZES}", tar.rpartition("/")[2]), SIZES),
        (mean, "the mean of the other tars"),
        (of_file, "the place of the damage in the file"),
    ):
        if expected is not None:
            return TornPart(name, cause, n_read, max(0, round(expected) - n_read), basis)
    return TornPart(name, cause, n_read, None, "")


def _folder(tar: str) -> str:
    """Return the folder of a tar, ending in a slash, or "" for the working folder."""
    return "".join(tar.rpartition("/")[:2])


def _stats_file(tar: str) -> str:
    """Return the file in which img2dataset counts the samples of a tar."""
    return f"{_folder(tar)}{tar.rpartition('/')[2].partition('.')[0]}_stats.json"


def _number(file: str, field: str) -> int | None:
    """Return a number of a JSON file beside a tar; None without a valid file, and for a ``pipe:`` without a tar."""
    if file.startswith("pipe:"):
        return None
    try:
        if is_plain(file) and not Path(file).is_file():  # a pipe could block for ever
            return None
        with fsspec.open(file, "rb") as stream:
            number: Any = parse_json(stream.read(limit("json_bytes")))[field]
    except Exception:  # each file system of fsspec has its own errors
        return None
    return number if type(number) is int and number >= 0 else None
