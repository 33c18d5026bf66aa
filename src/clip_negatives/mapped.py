"""Columns of a parquet file in memory-mapped Arrow, to look rows up at random places without holding the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clip_negatives.atomic import replaced_file
from clip_negatives.errors import ArtifactError
from clip_negatives.reading import check_texts, one_line

ROWS_AT_ONCE = 65_536
"""Rows that are copied at a time."""


def write_mapped(parquet: Path, columns: Sequence[str], file: Path) -> None:
    """Write columns of a parquet file as Arrow; those that it does not have are left out.

    Raises:
        ArtifactError: it cannot be read, or `file` cannot be written.
    """
    try:
        source = pq.ParquetFile(parquet)
        names = [name for name in source.schema_arrow.names if name in columns]
        schema = pa.schema([source.schema_arrow.field(name) for name in names])
        with replaced_file(file) as partial, pa.ipc.new_file(partial, schema) as writer:
            left = source.metadata.num_rows
            for batch in source.iter_batches(ROWS_AT_ONCE, columns=names):
                check_texts(batch, [name for name in names if name != "group"])
                writer.write_batch(batch.select(names))
                left -= batch.num_rows
            if left != 0:
                raise ValueError(f"{left} rows fewer than it claims")
    except (ValueError, pa.ArrowException) as error:
        reason = one_line(error)
        raise ArtifactError(f"Expected a table that can be read at {parquet}, got: {reason}. Prepare it again.") from error


def map_table(file: Path) -> pa.Table:
    """Return what `write_mapped` wrote; its memory is that of the file."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def take(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.Array:
    """Return some rows of a column, in the order of `rows`, which may repeat.

    Equals ``column.take(rows)``, which would copy the whole column first.
    """
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    numbers = np.searchsorted(ends, rows, side="right")
    order = np.argsort(numbers, kind="stable")
    parts = []
    for number, some in zip(*_grouped(numbers[order], rows[order]), strict=True):
        chunk = column.chunk(number)
        parts.append(chunk.take(pa.array(some - (ends[number] - len(chunk)))))
    together = pa.concat_arrays(parts) if parts else pa.array([], column.type)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return together.take(pa.array(back))


def _grouped(numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[list[int], list[NDArray[np.int64]]]:
    """Return the different numbers, which are sorted, and the rows of each."""
    distinct, first = np.unique(numbers, return_index=True)
    return distinct.tolist(), np.split(rows, first[1:]) if len(distinct) else []
