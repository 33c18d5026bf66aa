"""The samples of a clusters folder of tars, shard by shard, with their labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from clip_negatives.artifacts import COLUMNS, SAMPLES, whole_clusters
from clip_negatives.errors import ArtifactError
from clip_negatives.reading import check_texts, one_line, open_table

ROWS_AT_ONCE = 65_536
"""Samples that are read at a time."""


class LabelledSamples:
    """Read keys, shards and labels of a clusters folder of tars, without holding them.

    Args:
        path: the clusters folder.

    Attributes:
        manifest: its manifest.
        clusters: its clusters, memory-mapped, without what is known of texts and groups.
        image: those of the images.
        text: those of the texts.

    Raises:
        ArtifactError: the folder is missing or damaged, or is not of tars.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest, self.clusters = whole_clusters(path)
        self.image, self.text = self.clusters.image, self.clusters.text
        try:
            self._samples = open_table(path / SAMPLES, ("key", "text"), COLUMNS)
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"Expected a whole clusters folder at {path}, got a damaged one: {error}. Prepare it again."
            ) from error
        rows = self._samples.metadata.num_rows
        if rows != self.image.n_samples:
            raise ArtifactError(
                f"Expected a whole clusters folder at {path}, got {rows} rows in {SAMPLES} for {self.image.n_samples} samples. "
                "Prepare it again."
            )
        if "shard" not in self._samples.schema_arrow.names:
            raise ArtifactError(
                f"Expected clusters of webdataset tars at {path}, got some of csv, or of an earlier version. Prepare the tars."
            )

    def shards(self) -> Iterator[tuple[str, pa.Array, slice]]:
        """Yield each shard with the keys of its samples and their rows; one shard is in memory at a time."""
        start = 0
        for shard, runs in groupby(self._runs(), key=lambda run: run[0]):
            keys = pa.concat_arrays([some for _, some in runs])
            yield shard, keys, slice(start, start + len(keys))
            start += len(keys)

    def table(self, keys: pa.Array, rows: slice | Tensor) -> pa.Table:
        """Return the table of some samples: their keys and labels."""
        columns = {"__key__": keys}
        for name, side in (("image_label", self.image), ("text_label", self.text)):
            columns[name] = pa.array(side.labels[rows].numpy().astype(np.int32))
        return pa.table(columns)

    def counted(self) -> dict[str, Tensor]:
        """Return the centroids, and the sizes of the clusters in the place of labels."""
        sides = {"image": self.image, "text": self.text}
        return {f"{name}_centroids": side.centroids for name, side in sides.items()} | {
            f"{name}_counts": side.sizes() for name, side in sides.items()
        }

    def _runs(self) -> Iterator[tuple[str, pa.Array]]:
        """Yield samples of one shard that stand together: its name and their keys."""
        for batch in self._batches():
            shards, keys = batch.column("shard").to_pylist(), batch.column("key")
            for shard, places in groupby(range(len(shards)), key=shards.__getitem__):
                some = list(places)
                yield shard, keys.slice(some[0], len(some))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Yield keys and shards of some samples at a time.

        Raises:
            ArtifactError: they are damaged.
        """
        try:
            for batch in self._samples.iter_batches(ROWS_AT_ONCE, columns=["key", "shard"]):
                check_texts(batch, ("key", "shard"))
                yield batch
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ArtifactError(
                f"Expected a whole clusters folder at {self.path}, got a damaged one: {SAMPLES}: {one_line(error)}. "
                "Prepare it again."
            ) from error
