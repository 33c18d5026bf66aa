"""Interface of image-text data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from clip_negatives.dataset.notes import Note
from clip_negatives.storage.source_files import SourceFile

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """An image-text pair.

    Attributes:
        image: the image, RGB; None if it is not opened, because its features are known.
        image_path: file of the image, if it is a file.
        image_bytes: size of this file; None if the image is not a file.
        group: item that the pair shows, such as a product; "" if unknown, None if the data have no groups.
        shard: path or URL of the tar that holds the pair; None for other data.
        notes: notes on the pair, besides the notes on its image, see `clip_negatives.dataset.notes`.
    """

    key: str
    text: str
    image: Image.Image | None
    image_path: str | None = None
    group: str | None = None
    shard: str | None = None
    image_bytes: int | None = None
    notes: tuple[Note, ...] = ()

    @property
    def name(self) -> str:
        """Return the name for messages."""
        return name_of(self.key, self.image_path)


@dataclass(frozen=True, slots=True)
class BrokenSample:
    """A skipped pair; open_clip skips it too. `reason` is the same in every run.

    Attributes:
        shard: path or URL of the tar.
        is_lost: whether the pair cannot be read. False for a sample without image or caption, and for a repeated key.
    """

    key: str
    reason: str
    shard: str
    is_lost: bool = True


@dataclass(frozen=True, slots=True)
class TornTar(BrokenSample):
    """The skipped rest of a tar; `key` is the tar.

    Attributes:
        share: share of the file before the damage; None if unknown.
    """

    share: float | None = None


class Part(Protocol):
    """Pairs that are read independently of other parts of the data set: one tar, or a block of rows of a table."""

    @property
    def name(self) -> str:
        """Return a name for messages."""

    def digest(self) -> str:
        """Return a digest that is unique to this part and changes with its pairs, or raise DataError if the part is missing."""

    def source_files(self) -> Sequence[SourceFile]:
        """Return size and digest of the tar, or of evenly spread images, to recognise them before a training."""

    def samples(self) -> Iterator[Sample | BrokenSample]:
        """Read the pairs in order; DataError if the part cannot be read, or if an invalid pair cannot be skipped."""


class ImageTextPairs(Protocol):
    """A data set of image-text pairs in a fixed order. Sample i of the clusters is the i-th pair that is not broken."""

    @property
    def n_pairs(self) -> int | None:
        """Return the number of pairs; None if it is unknown until they are read."""

    def parts(self) -> Sequence[Part]:
        """Return the parts in order."""

    def fingerprint(self) -> str:
        """Return a digest that changes with the pairs: `fingerprint_of` of the parts' digests."""


def name_of(key: str, image_path: str | None) -> str:
    """Return the name of a pair for messages: its key, or row and image file of a pair of a table."""
    return key if image_path is None else f"row {key}, {image_path}"


def readable(samples: Iterable[T | BrokenSample], broken: list[BrokenSample]) -> Iterator[T]:
    """Yield the readable samples, and append the broken ones to `broken`."""
    for sample in samples:
        if isinstance(sample, BrokenSample):
            broken.append(sample)
        else:
            yield sample


def fingerprint_of(digests: Sequence[str]) -> str:
    """Return the digest of a data set from the digests of its parts, in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def file_stamp(file: str) -> bytes:
    """Return the size and modification time of a file, for digests."""
    try:
        status = Path(file).stat()
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}\0".encode()
