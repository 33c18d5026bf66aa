"""Rows of samples in any order, grouped by shard on the disk, so that memory holds a part of the rows at a time."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

ROWS_PER_BUCKET = 2**21  # of which memory holds one bucket at a time
MAX_BUCKETS = 256  # files that are open at once


class ShardBuckets:
    """Files with the rows of many shards each. A shard is in one of them, by a checksum of its name.

    Use it as a context manager around `add`; read `shards` afterwards.

    Attributes:
        numbers: number of each shard, by its name, in the order of appearance.
    """

    def __init__(self, folder: Path, likely_rows: int) -> None:
        self._folder, self._count = folder, min(MAX_BUCKETS, 1 + likely_rows // ROWS_PER_BUCKET)
        self._buckets = np.empty(0, np.int64)  # of each shard, by its number
        self._writers: dict[int, Any] = {}
        self._stack = ExitStack()
        self.numbers: dict[str, int] = {}

    def __enter__(self) -> ShardBuckets:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, rows: pa.Table) -> None:
        """Write rows, whose columns are shard, key and others of fixed types."""
        shards = rows["shard"].combine_chunks().dictionary_encode()
        numbers = self._numbered(shards.dictionary.to_pylist())[shards.indices.to_numpy()]
        buckets = self._buckets[numbers]
        order = np.argsort(buckets, kind="stable")
        limits = np.searchsorted(buckets[order], np.arange(self._count + 1))
        numbered = rows.set_column(rows.column_names.index("shard"), "shard", pa.array(numbers, pa.int32()))
        ordered = numbered.take(pa.array(order))
        for bucket, (start, stop) in enumerate(itertools.pairwise(limits)):
            if start < stop:
                self._writer(bucket, ordered.schema).write_table(ordered.slice(start, stop - start).combine_chunks())

    def shards(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield name and rows of each shard; rows are sorted by key, without the column shard.

        The order of the shards depends on their names and the number of buckets, not on the order of the rows.
        """
        names = np.array(list(self.numbers), object)
        for bucket in range(self._count):
            numbers = np.flatnonzero(self._buckets == bucket)
            if len(numbers) == 0:
                continue
            with pa.OSFile(str(self._file(bucket))) as file:
                table = pa.ipc.open_stream(file).read_all()
            rows_of = table["shard"].to_numpy()
            order = np.argsort(rows_of, kind="stable")
            starts, stops = (np.searchsorted(rows_of, numbers, side=side, sorter=order) for side in ("left", "right"))
            for place in np.argsort(names[numbers]):
                rows = table.drop_columns("shard").take(pa.array(order[starts[place] : stops[place]]))
                yield str(names[numbers[place]]), rows.take(pc.sort_indices(rows, [("key", "ascending")]))

    def _numbered(self, names: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the number of each shard; shards that were not seen before get the next numbers."""
        new = [name for name in names if name not in self.numbers]
        self.numbers |= {name: number for number, name in enumerate(new, len(self.numbers))}
        buckets = np.array([zlib.crc32(name.encode()) % self._count for name in new], np.int64)
        self._buckets = np.concatenate([self._buckets, buckets])
        return np.array([self.numbers[name] for name in names], np.int64)

    def _writer(self, bucket: int, schema: pa.Schema) -> Any:
        if bucket not in self._writers:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            stream = self._stack.enter_context(pa.OSFile(str(self._file(bucket)), "wb"))
            self._writers[bucket] = self._stack.enter_context(pa.ipc.new_stream(stream, schema, options=options))
        return self._writers[bucket]

    def _file(self, bucket: int) -> Path:
        return self._folder / f"{bucket:03d}.arrow"
