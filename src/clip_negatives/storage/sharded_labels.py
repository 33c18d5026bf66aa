"""Labels of samples of tars, tar by tar, from a clusters folder or a labels folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from clip_negatives.clustering.similarity import similarities
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.storage.consistency import MODALITIES
from clip_negatives.storage.labels_folder import read_labels
from clip_negatives.storage.manifest import LABELS_FOLDER
from clip_negatives.storage.sharded_samples import ShardedSamples
from clip_negatives.storage.source_files import SourceFile


class LabelledTars(Protocol):
    """Tars and the labels of their samples."""

    path: Path
    image: Clustering
    text: Clustering
    manifest: Mapping[str, Any]

    @property
    def clusters(self) -> Clusters:
        """Return the clusters, with samples in the order of `tables`."""
        ...

    def sources(self) -> Mapping[str, SourceFile]:
        """Return size and digest of each tar, by its name; empty if an older version wrote the folder."""
        ...

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of each tar, and keys, labels and text digests of its samples, as a labels file stores them."""
        ...


def labelled_tars(folder: Path) -> LabelledTars:
    """Return the tars of a clusters folder or of a labels folder.

    Raises:
        ArtifactError: the folder is damaged, or not made from tars.
    """
    return ShardedLabels(folder) if LABELS_FOLDER.is_at(folder) else ShardedSamples(folder)


class ShardedLabels:
    """Labels of a labels folder. Memory holds one tar at a time, except in `clusters`."""

    def __init__(self, path: Path) -> None:
        self._folder = read_labels(path)
        self.path, self.image, self.text, self.manifest = path, self._folder.image, self._folder.text, self._folder.manifest

    @property
    def clusters(self) -> Clusters:
        """Return the clusters, with samples in the order of `tables`. Their labels take 16 N bytes."""
        labels = {name: np.empty(self.image.n_samples, np.int64) for name in MODALITIES}
        start = 0
        for _, table in self.tables():
            for name, values in labels.items():
                values[start : start + len(table)] = table[f"{name}_label"].to_numpy()
            start += len(table)
        image, text = (
            Clustering(torch.from_numpy(labels[name]), side.centroids)
            for name, side in zip(MODALITIES, (self.image, self.text), strict=True)
        )
        return Clusters(image, text, **similarities(image, text))

    def sources(self) -> Mapping[str, SourceFile]:
        """Return size and digest of each tar, by its name."""
        return {source.file: source for source in self._folder.shards.sources.values()}

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of each tar, and its labels."""
        return self._folder.shards.tables()
