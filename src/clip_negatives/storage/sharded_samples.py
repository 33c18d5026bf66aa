"""Samples of a clusters folder made from tars, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clip_negatives.clusters import Clusters
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.clusters_folder import sources_in
from clip_negatives.storage.clusters_parts import open_clusters
from clip_negatives.storage.digests import text_digest
from clip_negatives.storage.manifest import CLUSTERS_FOLDER, SAMPLES
from clip_negatives.storage.safe_reading import read_batches
from clip_negatives.storage.source_files import SourceFile

LABEL_COLUMNS = ("__key__", "image_label", "text_label", "text_digest")  # of the labels of a shard


class ShardedSamples:
    """Samples of a clusters folder made from tars. Memory holds one shard at a time, unless the samples are scattered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = open_clusters(path)
        self.image, self.text = self._parts.image, self._parts.text
        self.manifest, self._table = self._parts.manifest, self._parts.table
        if "shard" not in self._table.schema_arrow.names:
            fault = "does not name shards: it was made from a csv file or by an older version"
            raise ArtifactError(f"The clusters folder {path} {fault}. Run clip-negatives prepare on the tars.")

    @property
    def clusters(self) -> Clusters:
        """Return the clusters, with samples in the order of `tables`; similarities are computed on first use.

        Raises:
            ArtifactError: the samples of a tar are scattered.
        """
        if self.is_scattered:
            raise ArtifactError(
                f"In {self.path}, the samples of a tar do not stand together. Write a labels folder of it with clip-negatives "
                "labels, and name that folder instead."
            )
        return self._parts.clusters

    def sources(self) -> dict[str, SourceFile]:
        """Read size and digest of each shard, by its name; empty if an older version wrote the folder."""
        return {source.file: source for source in sources_in(self.path, self.manifest)}

    @cached_property
    def is_scattered(self) -> bool:
        """Return whether samples of other tars stand between those of a tar, because several workers encoded them in turn."""
        if "features" not in self.manifest:  # `prepare` encoded tar by tar
            return False
        seen, last = set[str](), None
        for batch in self._batches("shard"):
            for shard, _ in groupby(batch.column("shard").to_pylist()):
                if shard != last and shard in seen:
                    return True
                seen.add(shard)
                last = shard
        return False

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of each shard, and keys, labels and text digests of its samples, as a labels file stores them.

        One shard is in memory at a time, or the whole table if the samples `is_scattered`.
        """
        for shard, keys, rows, texts in self._shards():
            image, text = (side.labels[rows].numpy().astype(np.int32) for side in (self.image, self.text))
            digests = pa.array((text_digest(value.encode()) for value in texts.to_pylist()), pa.string())
            yield shard, pa.table(dict(zip(LABEL_COLUMNS, (keys, image, text, digests), strict=True)))

    def _shards(self) -> Iterator[tuple[str, pa.Array, slice | Tensor, pa.Array]]:
        """Yield the name of each shard, and keys, rows and texts of its samples."""
        if self.is_scattered:
            yield from self._gathered()
            return
        start = 0
        for shard, runs in groupby(self._runs(), key=lambda run: run[0]):
            keys, texts = (pa.concat_arrays(parts) for parts in zip(*((keys, texts) for _, keys, texts in runs), strict=True))
            yield shard, keys, slice(start, start + len(keys)), texts
            start += len(keys)

    def _gathered(self) -> Iterator[tuple[str, pa.Array, Tensor, pa.Array]]:
        """Yield as `_shards` does, from samples that are scattered."""
        table = pa.Table.from_batches(self._batches("key", "text", "shard"))
        shards = table["shard"].combine_chunks().dictionary_encode()
        numbers = shards.indices.to_numpy()
        order = np.argsort(numbers, kind="stable")
        limits = np.searchsorted(numbers[order], np.arange(len(shards.dictionary) + 1))
        keys, texts = (table[name].combine_chunks() for name in ("key", "text"))
        for name, start, stop in zip(shards.dictionary.to_pylist(), limits, limits[1:], strict=False):
            rows = order[start:stop]
            yield name, keys.take(pa.array(rows)), torch.from_numpy(rows), texts.take(pa.array(rows))

    def _runs(self) -> Iterator[tuple[str, pa.Array, pa.Array]]:
        """Yield shard, keys and texts of each run of consecutive samples of one shard."""
        for batch in self._batches("key", "text", "shard"):
            shards, keys, texts = batch.column("shard").to_pylist(), batch.column("key"), batch.column("text")
            for shard, group in groupby(range(len(shards)), key=shards.__getitem__):
                rows = list(group)
                yield shard, keys.slice(rows[0], len(rows)), texts.slice(rows[0], len(rows))

    def _batches(self, *columns: str) -> Iterator[pa.RecordBatch]:
        with CLUSTERS_FOLDER.reading(self.path, SAMPLES):
            yield from read_batches(self._table, columns, columns)
