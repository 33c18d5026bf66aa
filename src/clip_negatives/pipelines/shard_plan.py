"""The plan of `reshard`: which samples each new tar gets. Tasks share it on a disk, and no task reads it whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray
from torch import Tensor

from clip_negatives.errors import DataError
from clip_negatives.storage.arrow_table import map_table, take
from clip_negatives.storage.ownership import new_folder
from clip_negatives.storage.safe_reading import BATCH_ROWS, read_json
from clip_negatives.storage.sharded_labels import LabelledTars
from clip_negatives.storage.sharded_samples import LABEL_COLUMNS

SAMPLES, ROWS, NEW_TARS, COUNTS = "samples.arrow", "rows.npy", "new_tars.npy", "counts.json"
SCHEMA = pa.schema(zip(LABEL_COLUMNS, (pa.string(), pa.int32(), pa.int32(), pa.string()), strict=True))


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The samples of each old tar and of each new tar; large parts are memory-mapped.

    Attributes:
        samples: keys, labels and text digests of all samples, old tar by old tar; see `LABEL_COLUMNS`.
        old_tars: first row and row after the last of each old tar, by its name.
        rows: rows of all samples, new tar by new tar.
        starts: place of the first sample of each new tar in `rows`, and the number of samples.
        new_tar_of: number of the new tar of each row.
    """

    samples: pa.Table
    old_tars: dict[str, tuple[int, int]]
    rows: NDArray[np.int32 | np.int64]
    starts: NDArray[np.int64]
    new_tar_of: NDArray[np.int32]

    @classmethod
    def write(cls, folder: Path, source: LabelledTars, shards: Sequence[Tensor]) -> None:
        """Write the plan into a new folder; `shards` are the rows of each new tar.

        Raises:
            DataError: a new tar would have two samples with the same key.
        """
        with new_folder(folder) as partial:
            counts = _write_samples(partial / SAMPLES, source)
            _check_keys(map_table(partial / SAMPLES)[LABEL_COLUMNS[0]], shards)
            rows = np.concatenate([shard.numpy() for shard in shards])
            sizes = np.array([len(shard) for shard in shards])
            new_tar_of = np.empty(len(rows), np.int32)
            new_tar_of[rows] = np.repeat(np.arange(len(shards), dtype=np.int32), sizes)
            np.save(partial / ROWS, rows)
            np.save(partial / NEW_TARS, new_tar_of)
            (partial / COUNTS).write_text(json.dumps({"old_tars": counts, "new_tars": sizes.tolist()}))

    @classmethod
    def open(cls, folder: Path) -> ShardPlan:
        """Return the plan in a folder."""
        counts = read_json(folder / COUNTS, "json_bytes")
        stops = np.cumsum(list(counts["old_tars"].values())).tolist()
        old_tars = dict(zip(counts["old_tars"], zip([0, *stops[:-1]], stops, strict=True), strict=True))
        rows, new_tar_of = (np.load(folder / name, mmap_mode="r") for name in (ROWS, NEW_TARS))
        return cls(map_table(folder / SAMPLES), old_tars, rows, np.cumsum([0, *counts["new_tars"]]), new_tar_of)

    def __len__(self) -> int:
        """Return the number of new tars."""
        return len(self.starts) - 1

    def rows_of(self, number: int) -> NDArray[np.int64]:
        """Return the rows of a new tar."""
        return np.asarray(self.rows[self.starts[number] : self.starts[number + 1]], np.int64)

    def labels_of(self, number: int) -> pa.Table:
        """Return keys, labels and text digests of the samples of a new tar."""
        rows = self.rows_of(number)
        return pa.table({name: take(self.samples[name], rows) for name in LABEL_COLUMNS})

    def keys_of(self, old_tar: str) -> dict[str, int]:
        """Return the row of each sample of an old tar, by its key."""
        start, stop = self.old_tars[old_tar]
        return dict(zip(self.samples[LABEL_COLUMNS[0]][start:stop].to_pylist(), range(start, stop), strict=True))


def _write_samples(file: Path, source: LabelledTars) -> dict[str, int]:
    """Write keys and labels of all samples, and return the number of samples of each old tar."""
    counts: dict[str, int] = {}
    waiting: list[pa.Table] = []
    with pa.ipc.new_file(file, SCHEMA) as writer:
        for tar, table in source.tables():
            counts[tar] = len(table)
            waiting.append(table.cast(SCHEMA))
            if sum(map(len, waiting)) >= BATCH_ROWS:  # few batches: each access looks at all of them
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        writer.write_table(pa.concat_tables([SCHEMA.empty_table(), *waiting]).combine_chunks())
    return counts


def _check_keys(keys: pa.ChunkedArray, shards: Sequence[Tensor]) -> None:
    """Raise DataError if two samples of a new tar have the same key: labels could not tell them apart."""
    hashes = np.concatenate([pd.util.hash_array(chunk.to_numpy(zero_copy_only=False)) for chunk in keys.chunks])
    for rows in shards:
        if len(np.unique(hashes[rows.numpy()])) < len(rows):
            raise DataError(
                "Samples of different tars have the same key, and a new shard would hold two of them. Rename the samples: "
                "reshard copies them as they are."
            )
