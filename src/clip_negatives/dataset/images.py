"""Read images safely: allowed formats only, and no more pixels than the limit."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from clip_negatives.dataset.notes import KEY, image_kinds
from clip_negatives.distributed.environment import reading_threads
from clip_negatives.errors import DataError
from clip_negatives.storage.atomic import digest
from clip_negatives.storage.limits import VARIABLE, limit
from clip_negatives.storage.source_files import SourceFile

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 64  # images that threads read in one batch
SLICE = 8  # images that a thread reads at a time
MAX_PIXELS_AHEAD = 2**27  # total pixels of a batch (400 MB): large images are read in smaller batches
SMALL = MAX_PIXELS_AHEAD // AHEAD  # most pixels of a small image: any batch can hold it

# Allowed image formats, whatever the file name. Pillow knows more formats; for EPS, which is a program, it starts Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

_DECODING_ERRORS = (  # undocumented errors of Pillow's decoders for damaged files
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)

_lock = threading.Lock()
_old_limits: list[int | None] = []  # Pillow's limit at the start of each open `pillow_limit` block; the first is the user's


class ImageTooLargeError(DataError):
    """An image has more pixels than the limit: a small file can claim enough pixels to fill the memory."""


@contextmanager
def pillow_limit() -> Iterator[None]:
    """Raise Pillow's pixel limit to ours within the block, in all threads; the end of the last open block restores it."""
    with _lock:
        _old_limits.append(Image.MAX_IMAGE_PIXELS)
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit("pixels"))
    try:
        yield
    finally:
        with _lock:
            if len(_old_limits) == 1:
                Image.MAX_IMAGE_PIXELS = _old_limits[0]
            _old_limits.pop()


def read_image(file: Any, name: str) -> Image.Image:
    """Return an image (path or binary stream) in RGB, converted as in open_clip; `name` is its name in errors.

    `clip_negatives.dataset.notes.image_notes` says how the conversion changes the picture.
    """
    try:
        with _opened(file) as image:
            return _rgb(image)
    except Image.DecompressionBombError as error:
        repair = f"Shrink it, leave it out, or raise the limit: {VARIABLE}=pixels=NUMBER."
        raise ImageTooLargeError(f"The image {name} has more than {limit('pixels')} pixels. {repair}") from error
    except _DECODING_ERRORS as error:
        is_file = not isinstance(file, str | os.PathLike) or file_size(os.fspath(file)) is not None
        fault = "cannot be decoded" if is_file else "does not exist or is not a file"
        repair = "Repair it" if is_file else "Correct its path"
        if isinstance(file, str) and "://" in file:
            fault, repair = "is a URL, but images are read from files", "Download it, for example with img2dataset,"
        if isinstance(error, PermissionError):
            fault, repair = "cannot be read: permission denied", "Change its permissions"
        raise DataError(f"The image {name} {fault}. {repair} or leave it out.") from error


def read_or_count(file: Any) -> Image.Image | int:
    """Return `read_image` of an image of at most `SMALL` pixels, else `count_pixels`: a small image is opened only once."""
    try:
        with _opened(file) as image:
            n_pixels = image.width * image.height
            return _rgb(image) if n_pixels <= SMALL else n_pixels
    except _DECODING_ERRORS:
        return 0


def read_small_image(file: Any, side: int) -> Image.Image | None:
    """Return an image in RGB, shrunk to fit a square of `side` pixels, or None if `read_image` would fail."""
    try:
        with _opened(file) as image:
            image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a lower resolution
            small = image.convert("RGB")
    except _DECODING_ERRORS:
        return None
    small.thumbnail((side, side))
    return small


def read_small_files(paths: Sequence[str], side: int) -> Iterator[Image.Image | None]:
    """Yield `read_small_image` of each file, read ahead by threads."""
    with ThreadPoolExecutor(reading_threads()) as pool:
        for start in range(0, len(paths), AHEAD):
            yield from pool.map(lambda path: read_small_image(path, side), paths[start : start + AHEAD])


def file_size(path: str) -> int | None:
    """Return the size of a regular file in bytes, or None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  (half the time of `Path.stat`)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def image_source(path: str) -> SourceFile:
    """Return size and digest of an image file, unknown if it cannot be read."""
    size = file_size(path)
    try:
        return SourceFile(path, size, "" if size is None else digest(Path(path)))
    except OSError:
        return SourceFile(path, None, "")


def count_pixels(file: Any) -> int:
    """Return the number of pixels that the header of an image claims, or 0 if `read_image` would fail."""
    try:
        with _opened(file) as image:
            return image.width * image.height
    except _DECODING_ERRORS:
        return 0


def in_slices(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield ``work(item)`` in order, like ``pool.map``; a thread gets `SLICE` items at a time, because a task costs time."""
    slices = (items[start : start + SLICE] for start in range(0, len(items), SLICE))
    for results in pool.map(lambda part: list(map(work, part)), slices):
        yield from results


def limited_batches(
    samples: Iterable[T], size: int, pixels: Callable[[T], int] | None = None, max_pixels: int = MAX_PIXELS_AHEAD
) -> Iterator[list[T]]:
    """Yield lists of up to `size` samples with at most `max_pixels` in total; a larger sample is alone in its list."""
    batch, total = list[T](), 0
    for sample in samples:
        count = 0 if pixels is None else pixels(sample)
        if len(batch) == size or (batch and total + count > max_pixels):
            yield batch
            batch, total = [], 0
        batch.append(sample)
        total += count
    if batch:
        yield batch


def check_regular(file: Any) -> None:
    """Raise OSError if an image, given by its path, is a folder, a pipe or a device: reading it could block for ever."""
    if isinstance(file, str | os.PathLike) and not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116  (faster than `Path`)
        raise OSError(errno.EINVAL, "not a regular file", str(file))


def _rgb(image: Image.Image) -> Image.Image:
    """Return an opened image in RGB, with the kinds of its notes in ``info``."""
    image.load()
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # a conversion from RGB to RGB would be a copy
    rgb.info[KEY] = image_kinds(image)
    return rgb


@contextmanager
def _opened(file: Any) -> Iterator[Image.Image]:
    check_regular(file)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with pillow_limit(), Image.open(file, formats=formats) as image:
        if image.width * image.height > limit("pixels"):
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        yield image
