"""What every kind of image-text data offers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from clip_negatives.errors import DataError

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


def stamp(file: str) -> bytes:
    """Return size and time of change of a file, for fingerprints."""
    try:
        status = Path(file).stat()
    except OSError:
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}\0".encode()
