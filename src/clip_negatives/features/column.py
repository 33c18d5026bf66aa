"""Features in a column of a table, read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.dataset.formats import StreamedColumns
from clip_negatives.dataset.tables import TablePairs
from clip_negatives.dataset.urls import shard_source, shard_stamp
from clip_negatives.errors import DataError
from clip_negatives.storage.source_files import SourceFile

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True, slots=True)
class ColumnFeatures:
    """Features in a column of lists; see `clip_negatives.features.given.GivenFeatures`."""

    name: str
    n_rows: int
    column: str
    streamed: StreamedColumns

    @classmethod
    def of(cls, table: TablePairs, column: str) -> ColumnFeatures:
        """Return the features in a column of a table, whose values are not read yet; DataError if it has no such column."""
        if table.streamed is None:
            fault = f"{table.path} cannot hold features in a column"
            raise DataError(f"{fault}. Save it as parquet, or name npy files with {argument('features')}.")
        if column not in table.names:
            names = ", ".join(map(repr, table.names))
            fault = f"{table.path} has no column {column!r} (columns: {names})"
            raise DataError(f"{fault}. Correct {argument('features')}.")
        return cls(f"the column {column!r} of {table.path}", len(table), column, table.streamed)

    def stamp(self) -> bytes:
        """Return the column, and names, sizes and modification times of the files or the fingerprint of the data set."""
        files = (part for file in self.streamed.files for part in (file.encode(), shard_stamp(file)))
        return b"\0".join([self.column.encode(), self.streamed.fingerprint.encode(), *files])

    def sources(self) -> list[SourceFile]:
        """Return the size of each file, and a digest of both ends."""
        return [shard_source(file) for file in self.streamed.files]

    def blocks(self) -> Iterator[tuple[str, int, Tensor]]:
        """Yield blocks: the name of the features, the number of the first row, and the rows."""
        start, dim = 0, None
        for values in self.streamed.read(self.column):
            if len(values) == 0:
                continue
            rows = self._rows(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values, start)
            if dim not in (None, rows.shape[1]):
                raise self._fault(start, f"has {rows.shape[1]} numbers, but other rows have {dim}")
            dim = rows.shape[1]
            yield self.name, start, rows
            start += len(rows)

    def mapped(self) -> None:
        """Return None: no tensor can be mapped from a column."""

    def _rows(self, values: pa.Array, start: int) -> Tensor:
        """Return the lists of an array as rows."""
        if not any(is_list(values.type) for is_list in LISTS) or not pa.types.is_floating(values.type.value_type):
            fault = f"has values of type {values.type}, not lists of floats"
            raise DataError(f"{self.name[0].upper()}{self.name[1:]} {fault}. Name another column with {argument('features')}.")
        lengths = np.asarray(pc.fill_null(pc.list_value_length(values), 0))
        expected, numbers = int(np.bincount(lengths).argmax()), pc.list_flatten(values)
        if len(odd := np.flatnonzero(lengths != expected)) or expected == 0:
            row = int(odd[0]) if expected else 0
            raise self._fault(start + row, f"has {lengths[row]} numbers, but other rows have {expected or 'some'}")
        if numbers.null_count:
            place = int(np.asarray(pc.is_null(numbers)).argmax())
            raise self._fault(start + place // expected, "has a missing number")
        flat = numbers.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)
        return torch.from_numpy(np.array(flat))

    def _fault(self, row: int, fault: str) -> DataError:
        return DataError(f"Row {row} of {self.name} {fault}. Leave the row out, or compute its features again.")
