"""Contents of a clusters folder as they are stored: labels, centroids, features and the open table of samples."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from torch import Tensor

from clip_negatives.clustering.similarity import similarities
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.storage.consistency import MODALITIES, check_parts, tensor_specs
from clip_negatives.storage.manifest import CLUSTERS, CLUSTERS_FOLDER, MANIFEST, SAMPLES, check_clusters
from clip_negatives.storage.safe_reading import open_table, read_tensors

FEATURES = "features.safetensors"

OPTIONAL_COLUMNS = ("image", "group", "shard")  # of the table of samples; strings
BYTES = "bytes"  # optional column of the table of samples: size of the image file, int64


@dataclass(frozen=True)  # without slots: `clusters` is stored in the instance
class ClustersParts:
    """Contents of a clusters folder, without text and group ids; `table` is the open table of samples."""

    image: Clustering
    text: Clustering
    features: Mapping[str, Tensor]  # memory-mapped, by modality
    manifest: Mapping[str, Any]
    table: pq.ParquetFile

    @functools.cached_property
    def clusters(self) -> Clusters:
        """Return the clusters; the similarities between them are computed on first use."""
        features: dict[str, Any] = {f"{name}_features": self.features.get(name) for name in MODALITIES}
        return Clusters(self.image, self.text, **similarities(self.image, self.text), **features)


def open_clusters(path: Path) -> ClustersParts:
    """Read a clusters folder. Errors are as in `read_clusters`, but the values of the table of samples are not checked."""
    return CLUSTERS_FOLDER.unchanged(path, lambda: open_parts(path))


def open_parts(path: Path) -> ClustersParts:
    """Read a clusters folder that no other process replaces meanwhile, see `open_clusters`."""
    check_clusters(path)
    manifest = CLUSTERS_FOLDER.read_manifest(path, unhashed=(FEATURES,))
    features: dict[str, Tensor] = {}
    with CLUSTERS_FOLDER.reading(path, CLUSTERS):
        tensors = read_tensors(path / CLUSTERS, tensor_specs("labels"))
    if FEATURES in manifest["files"]:
        with CLUSTERS_FOLDER.reading(path, FEATURES):
            features = read_tensors(path / FEATURES, dict.fromkeys(MODALITIES, (("float32", "float16"), 2)))
    with CLUSTERS_FOLDER.reading(path, SAMPLES):
        table = open_table(path / SAMPLES, ("key", "text"), OPTIONAL_COLUMNS, integers=(BYTES,))
    # Clone the memory-mapped tensors: if the file is overwritten later, the labels must not change.
    image, text = (Clustering(*(tensors[f"{name}_{part}"].clone() for part in ("labels", "centroids"))) for name in MODALITIES)
    with CLUSTERS_FOLDER.reading(path):
        check_parts(image, text, features, table.metadata.num_rows, table.schema_arrow.names)
        if any(manifest.get(name) != count for name, count in counts_of(image, text).items()):
            raise ValueError(f"{MANIFEST} has wrong counts of samples or clusters")
    return ClustersParts(image, text, features, manifest, table)


def counts_of(image: Clustering, text: Clustering) -> dict[str, int]:
    """Return the numbers of samples and clusters, as the manifest has them."""
    return {"n_samples": image.n_samples, "n_image_clusters": image.n_clusters, "n_text_clusters": text.n_clusters}
