"""The images of a table: in files, or in the table itself."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from clip_negatives.dataset.images import file_size, image_source
from clip_negatives.dataset.pairs import file_stamp
from clip_negatives.errors import DataError
from clip_negatives.storage.digests import rows_digest
from clip_negatives.storage.source_files import DIGESTED_FILES, SourceFile, evenly_spread

ROW = "row "  # start of the name of an image in a table of source files
BLOCK = 65_536  # rows whose sizes are read at a time


class StoredImages(Protocol):
    """The images of the rows of a table."""

    @property
    def paths(self) -> pa.ChunkedArray | None:
        """Return the path of each image, None if the images are in the table."""

    def file(self, row: int) -> str | io.BytesIO:
        """Return the path of an image, or a stream of its bytes, for `PIL.Image.open`."""

    def name(self, row: int) -> str:
        """Return a name for messages."""

    def size(self, row: int) -> int | None:
        """Return the number of bytes of an image; None if it is missing."""

    def stamp(self, row: int) -> bytes:
        """Return bytes that change when the image changes."""

    def source(self, row: int) -> SourceFile:
        """Return size and digest of an image."""

    def digest(self) -> str:
        """Return a digest of the column, the same on another machine."""


class ImageFiles:
    """Images in files, given by their paths."""

    def __init__(self, paths: pa.ChunkedArray) -> None:
        self.paths = paths

    def file(self, row: int) -> str:
        """Return the path of an image."""
        return str(self.paths[row].as_py())

    def name(self, row: int) -> str:
        """Return the path of an image."""
        return self.file(row)

    def size(self, row: int) -> int | None:
        """Return the size of the file in bytes, None if there is none."""
        return file_size(self.file(row))

    def stamp(self, row: int) -> bytes:
        """Return path, size and modification time."""
        return f"{self.file(row)}\0".encode() + file_stamp(self.file(row))

    def source(self, row: int) -> SourceFile:
        """Return size and digest of the file."""
        return image_source(self.file(row))

    def digest(self) -> str:
        """Return a digest of the paths."""
        return rows_digest(self.paths)


def within(folder: Path, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return paths in which a relative one starts at the folder."""
    chunks = [pa.array([str(folder / path) for path in chunk.to_pylist()], pa.string()) for chunk in paths.chunks]
    return pa.chunked_array(chunks, pa.string())


class EmbeddedImages:
    """Images in a column of a ``datasets.Dataset``: encoded files, or paths of files.

    Args:
        column: the data set with this column alone, of the feature ``datasets.Image(decode=False)``.
        name: name of the column.
    """

    paths = None

    def __init__(self, column: Any, name: str) -> None:
        self._column, self._name = column, name

    def file(self, row: int) -> str | io.BytesIO:
        """Return the bytes of an image as a file, or the path of its file."""
        image = self._column[row][self._name] or {}
        if image.get("bytes") is not None:
            return io.BytesIO(image["bytes"])
        if image.get("path") is not None:
            return str(image["path"])
        raise DataError(f"Row {row} has no image in column {self._name!r}. Leave the row out.")

    def name(self, row: int) -> str:
        """Return the name of the column."""
        return f"in column {self._name!r}"

    def size(self, row: int) -> int | None:
        """Return the number of bytes of an image."""
        size: int | None = self._embedded_sizes[row].as_py()
        if size is not None:
            return size
        file = self.file(row)
        return file_size(file) if isinstance(file, str) else len(file.getbuffer())

    def stamp(self, row: int) -> bytes:
        """Return a digest of the image, or size and modification time of its file."""
        file = self.file(row)
        return (
            f"{file}\0".encode() + file_stamp(file)
            if isinstance(file, str)
            else hashlib.blake2b(file.getbuffer(), digest_size=16).digest()
        )

    def source(self, row: int) -> SourceFile:
        """Return size and digest of an image; ``file`` is its row."""
        file = self.file(row)
        if isinstance(file, str):
            return replace(image_source(file), file=f"{ROW}{row}")
        return SourceFile(f"{ROW}{row}", len(file.getbuffer()), hashlib.sha256(file.getbuffer()).hexdigest())

    def digest(self) -> str:
        """Return a digest of the sizes of all images, and of the content of at most `DIGESTED_FILES`."""
        contents = [self.source(row).sha256 for row in evenly_spread(len(self._column), DIGESTED_FILES)]
        return hashlib.sha256(json.dumps([self.sizes(), contents]).encode()).hexdigest()

    def sizes(self) -> list[int | None]:
        """Return the number of bytes of each image."""
        return [self.size(row) if size is None else size for row, size in enumerate(self._embedded_sizes.to_pylist())]

    @functools.cached_property
    def _embedded_sizes(self) -> pa.ChunkedArray:
        """Return the number of bytes of each image in the table, null for an image in a file. No image is read for it."""
        blocks = (block[self._name] for block in self._column.with_format("arrow").iter(BLOCK))
        sizes = [pc.binary_length(pc.struct_field(images, "bytes")).cast(pa.int64()) for images in blocks]
        return pa.chunked_array([chunk for size in sizes for chunk in size.chunks], pa.int64())
