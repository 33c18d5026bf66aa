"""Memory-mapped Arrow copies of parquet tables, for random access to tables larger than memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import open_table, read_batches


def write_mapped(parquet: Path, columns: Sequence[str], file: Path) -> None:
    """Copy string columns of a parquet file to an Arrow file; skip columns that the parquet file lacks.

    Raises:
        ArtifactError: the parquet file is damaged.
    """
    try:
        table = open_table(parquet, (), columns)
        names = [name for name in table.schema_arrow.names if name in columns]
        schema = pa.schema([table.schema_arrow.field(name) for name in names])
        required = [name for name in names if name != "group"]
        with replaced_file(file) as partial, pa.ipc.new_file(partial, schema) as writer:
            for batch in read_batches(table, names, required):
                writer.write_batch(batch.select(names))
    except ValueError as error:
        raise ArtifactError(f"The table {parquet} is damaged: {error}. Run clip-negatives prepare again.") from error


def map_table(file: Path) -> pa.Table:
    """Return the table that `write_mapped` wrote, as a memory-mapped table."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def take(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.Array:
    """Return ``column.take(rows)`` without copying the whole column into memory."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    chunk_numbers = np.searchsorted(ends, rows, side="right")
    order = np.argsort(chunk_numbers, kind="stable")
    used_numbers, starts = np.unique(chunk_numbers[order], return_index=True)
    rows_by_chunk = np.split(rows[order], starts[1:])
    parts = []
    for number, chunk_rows in zip(used_numbers.tolist(), rows_by_chunk, strict=False):  # not strict: np.split([]) has one part
        chunk = column.chunk(number)
        parts.append(chunk.take(pa.array(chunk_rows - (ends[number] - len(chunk)))))
    values = pa.concat_arrays(parts) if parts else pa.array([], column.type)
    return values.take(pa.array(np.argsort(order)))
