"""What every kind of image-text data offers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from clip_negatives.errors import DataError

AHEAD = 64
"""Images that are read at once, by threads."""

_DECODING = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What PIL's decoders raise for files that are damaged or no image."""


class PairSource(Protocol):
    """Image-text pairs in a fixed order; sample i of the clusters is pair i.

    Attributes:
        keys: name of each pair, all different.
        texts: text of each pair.
        groups: what each pair shows (an item, a product), where the data say so; empty for a pair of which they do not.
        image_paths: file of each image, where images are files.
    """

    @property
    def keys(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def texts(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def groups(self) -> Sequence[str] | None: ...  # noqa: D102
    @property
    def image_paths(self) -> Sequence[str] | None: ...  # noqa: D102

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images start .. stop-1 in RGB."""
        ...

    def __len__(self) -> int:
        """Return the number of pairs, N."""
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes when the pairs do."""
        ...


def read_image(opened: Any, what: str) -> Image.Image:
    """Return an image in RGB, as open_clip's transforms make it.

    Args:
        opened: path or binary file.
        what: what the message of an error calls it.

    Raises:
        DataError: it is missing or no image.
    """
    try:
        with Image.open(opened) as image:
            picture: Image.Image = image.convert("RGB")
            return picture
    except _DECODING as error:
        fault = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read as one"
        raise DataError(f"Expected an image, got {what}, which {fault}. Repair it or leave it out.") from error


def read_small_image(opened: Any, side: int) -> Image.Image | None:
    """Return an image in RGB, shrunk to fit a square of `side` pixels, or None where it is missing or no image.

    Args:
        opened: path or binary file.
        side: pixels; smaller images stay as they are.
    """
    try:
        with Image.open(opened) as image:
            image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a fraction of its size
            picture: Image.Image = image.convert("RGB")
    except _DECODING:
        return None
    picture.thumbnail((side, side))
    return picture


def read_small_files(paths: Sequence[str], side: int) -> Iterator[Image.Image | None]:
    """Yield `read_small_image` of each file, some of them read ahead by threads."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), AHEAD):
            yield from pool.map(lambda path: read_small_image(path, side), paths[start : start + AHEAD])


def stamp(file: str) -> bytes:
    """Return size and time of change of a file, for fingerprints."""
    try:
        status = Path(file).stat()
    except OSError:
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}\0".encode()
