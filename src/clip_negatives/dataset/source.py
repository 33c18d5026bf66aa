"""What every kind of image-text data offers."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image

from clip_negatives.errors import DataError
from clip_negatives.limits import VARIABLE, limit

T = TypeVar("T")

AHEAD = 64
"""Images that are read at once, by threads."""

PIXELS_AHEAD = 2**27
"""Pixels that they may have together, 400 MB: large images are read in smaller numbers."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What images may be, whatever they are named. Pillow knows others: one, EPS, is a program that Ghostscript would run."""

_DECODING = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What PIL's decoders raise for files that are damaged or no image; it documents none of it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold a pair as it is read.

    Attributes:
        key: name of the pair.
        text: its text.
        image: its image in RGB.
        image_path: file of the image, where images are files.
        group: what it shows (an item, a product), where the data say so; empty where they do not say it of this pair.
        shard: path or URL of the tar that it is from, where it is from one.
    """

    key: str
    text: str
    image: Image.Image
    image_path: str | None = None
    group: str | None = None
    shard: str | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """Say of a pair that it is left out, as open_clip leaves it out of training.

    Attributes:
        key: name of the pair, or of the tar.
        reason: why; the same words in every run.
    """

    key: str
    reason: str


class Part(Protocol):
    """Some pairs of a data set, that are read without the others: a tar, or some rows of a csv file."""

    @property
    def name(self) -> str:
        """Return what messages call it."""
        ...

    def digest(self) -> str:
        """Return a digest that changes when its pairs do, and differs from that of every other part.

        Raises:
            DataError: it is not there.
        """
        ...

    def samples(self) -> Iterator[Sample | Broken]:
        """Read its pairs in order.

        Raises:
            DataError: it cannot be read, or a pair cannot be left out.
        """
        ...


class PairSource(Protocol):
    """Image-text pairs in a fixed order, part after part; sample i of the clusters is the i-th pair that is not broken.

    Attributes:
        n_pairs: how many there are, where that is known before they are read.
    """

    @property
    def n_pairs(self) -> int | None: ...  # noqa: D102

    def parts(self) -> Sequence[Part]:
        """Return the parts in order."""
        ...

    def fingerprint(self) -> str:
        """Return `fingerprint_of` its parts, which changes when the pairs do."""
        ...


def fingerprint_of(digests: Sequence[str]) -> str:
    """Return the digest of a data set, given those of its parts in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def in_turn(
    samples: Iterable[T], size: int, pixels: Callable[[T], int] | None = None, at_most: int = PIXELS_AHEAD
) -> Iterator[list[T]]:
    """Yield lists of `size` samples; shorter ones at the end, and where samples would have more pixels than `at_most` together.

    Examples:
        >>> list(in_turn([1, 9, 2, 2, 2], 3, lambda pixels: pixels, 6))
        [[1], [9], [2, 2, 2]]
    """
    some, held = list[T](), 0
    for sample in samples:
        more = 0 if pixels is None else pixels(sample)
        if len(some) == size or (some and held + more > at_most):
            yield some
            some, held = [], 0
        some.append(sample)
        held += more
    if some:
        yield some


class TooLargeError(DataError):
    """Report an image with more pixels than the limit: a small file can hold so many that all memory is not enough."""


def read_image(opened: Any, what: str) -> Image.Image:
    """Return an image in RGB, as open_clip's transforms make it.

    Args:
        opened: path or binary file.
        what: what the message of an error calls it.

    Raises:
        DataError: it is missing, no image of `FORMATS`, or (`TooLargeError`) has more pixels than the limit.
    """
    try:
        with _open_image(opened) as image:
            picture: Image.Image = image.convert("RGB")
            return picture
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"Expected an image of at most {limit('pixels')} pixels, got {what}, which has more. Make it smaller, leave it "
            f"out, or raise the limit: {VARIABLE}=pixels=NUMBER."
        ) from error
    except _DECODING as error:
        fault = "is not there, or is no file" if isinstance(error, FileNotFoundError) else "cannot be read as one"
        raise DataError(f"Expected an image, got {what}, which {fault}. Repair it or leave it out.") from error


def read_small_image(opened: Any, side: int) -> Image.Image | None:
    """Return an image in RGB, shrunk to fit a square of `side` pixels, or None where `read_image` would refuse it.

    Args:
        opened: path or binary file.
        side: pixels; smaller images stay as they are.
    """
    try:
        with _open_image(opened) as image:
            image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a fraction of its size
            picture: Image.Image = image.convert("RGB")
    except _DECODING:
        return None
    picture.thumbnail((side, side))
    return picture


def pixels_of(opened: Any) -> int:
    """Return the pixels of an image by its header, 0 where `read_image` will refuse it."""
    try:
        with _open_image(opened) as image:
            return int(image.width * image.height)
    except _DECODING:
        return 0


def _open_image(opened: Any) -> Image.Image:
    """Open an image of which nothing but the header is read yet."""
    if isinstance(opened, str | os.PathLike) and not Path(opened).is_file():
        # A pipe without a writer would hold us up for ever.
        raise FileNotFoundError(opened)
    allow_pixels()
    image = Image.open(opened, formats=_formats())
    if image.width * image.height > limit("pixels"):
        image.close()
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
    return image


def allow_pixels() -> None:
    """Let Pillow, which open_clip reads images with, have the limit as well where the environment raises it."""
    if Image.MAX_IMAGE_PIXELS is not None and limit("pixels") > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit("pixels")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_small_files(paths: Sequence[str], side: int) -> Iterator[Image.Image | None]:
    """Yield `read_small_image` of each file, some of them read ahead by threads."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), AHEAD):
            yield from pool.map(lambda path: read_small_image(path, side), paths[start : start + AHEAD])


def stamp(file: str) -> bytes:
    """Return size and time of change of a file, for fingerprints."""
    try:
        status = Path(file).stat()
    except (OSError, ValueError):  # a name with a zero byte in it
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}\0".encode()
