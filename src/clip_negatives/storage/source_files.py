"""Source files of clusters: size and digest of each tar, or of a few images, as they were when they were read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clip_negatives.storage.safe_reading import read_table

SOURCES = "sources.parquet"
DIGESTED_FILES = 64  # most files whose content is compared; the size of every file is


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A tar or an image that samples were read from.

    Attributes:
        file: path or URL.
        size: bytes; None if unknown, as for ``pipe:``.
        sha256: SHA-256 in hexadecimal, of an image's content or of both ends of a tar; "" if unknown.
    """

    file: str
    size: int | None
    sha256: str


def write_sources(sources: Iterable[SourceFile], file: Path) -> None:
    """Write source files as a parquet file."""
    rows = [(source.file, source.size, source.sha256) for source in sources]
    columns = [[row[place] for row in rows] for place in range(3)]
    types = {"file": pa.string(), "bytes": pa.int64(), "sha256": pa.string()}
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types.values(), strict=True)]
    pq.write_table(pa.table(arrays, list(types)), file, compression="zstd")


def read_sources(file: Path) -> list[SourceFile]:
    """Read the file of `write_sources`; damage is a ValueError."""
    table = read_table(file, ("file", "sha256"), integers=("bytes",))
    if "bytes" not in table.column_names:
        raise ValueError("it has no column bytes")
    rows = zip(*(table[name].to_pylist() for name in ("file", "bytes", "sha256")), strict=True)
    return [SourceFile(*row) for row in rows]


def evenly_spread(n: int, most: int) -> range:
    """Return at most `most` evenly spread numbers of 0 .. n-1.

    >>> list(evenly_spread(10, 4))
    [0, 3, 6, 9]
    """
    return range(0, n, -(-n // most) or 1)
