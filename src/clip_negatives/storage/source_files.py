"""Source files of clusters: size and digest of each tar, or of a few images, recorded when they were read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clip_negatives.storage.safe_reading import read_table

SOURCES = "sources.parquet"
DIGESTED_FILES = 64  # maximum number of files whose content is compared; sizes are compared for all files


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A tar or an image that samples were read from.

    Attributes:
        file: path or URL.
        size: bytes; None if unknown, as for ``pipe:``.
        sha256: SHA-256 of the content of an image, or of both ends of a tar, in hexadecimal; "" if unknown.
    """

    file: str
    size: int | None
    sha256: str


def write_sources(sources: Iterable[SourceFile], file: Path) -> None:
    """Write source files as a parquet file."""
    rows = [(source.file, source.size, source.sha256) for source in sources]
    columns = [[row[place] for row in rows] for place in range(3)]
    types = {"file": pa.string(), "bytes": pa.int64(), "sha256": pa.string()}
    arrays = [pa.array(column, dtype) for column, dtype in zip(columns, types.values(), strict=True)]
    pq.write_table(pa.table(arrays, list(types)), file, compression="zstd")


def read_sources(file: Path) -> list[SourceFile]:
    """Return the source files that `write_sources` wrote; ValueError if the file is damaged."""
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
