"""Consistency checks of clusters, features and the table of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clip_negatives.interfaces import Clustering
from clip_negatives.storage.safe_reading import TensorSpec

MODALITIES = ("image", "text")


def tensor_specs(per_sample_or_cluster: str) -> dict[str, TensorSpec]:
    """Return the specs of the tensors in a clusters file: centroids, and "labels" of samples or "counts" of clusters."""
    specs: dict[str, TensorSpec] = {per_sample_or_cluster: (("int64",), 1), "centroids": (("float32",), 2)}
    return {f"{modality}_{name}": spec for modality in MODALITIES for name, spec in specs.items()}


def check_parts(
    image: Clustering, text: Clustering, features: Mapping[str, Tensor], n_rows: int, columns: Sequence[str]
) -> None:
    """Raise ValueError if clusters, features and the table of samples are inconsistent."""
    n = image.n_samples
    for name, clustering in zip(MODALITIES, (image, text), strict=True):
        labels, centroids = clustering.labels, clustering.centroids
        if labels.dtype != torch.int64 or labels.shape != (n,) or centroids.ndim != 2 or n == 0:
            raise ValueError(f"{name} labels or centroids have the wrong shape or dtype")
        if not 0 < len(centroids) <= n or centroids.shape[1] == 0:  # checked first: `sizes` allocates a tensor of this size
            raise ValueError(f"{n} samples cannot have {len(centroids)} {name} clusters in {centroids.shape[1]} dimensions")
        if not 0 <= int(labels.min()) <= int(labels.max()) < clustering.n_clusters:
            raise ValueError(f"{name} labels are outside 0 .. {clustering.n_clusters - 1}")
        if (empty := (clustering.sizes() == 0).nonzero().flatten()).numel():
            raise ValueError(f"{name} cluster {int(empty[0])} is empty")
        if not bool(centroids.isfinite().all()):
            raise ValueError(f"{name} centroids are not finite")
        if name in features and features[name].shape != (n, centroids.shape[1]):
            raise ValueError(f"{name} features and clusters differ in the number of samples or dimensions")
    if n_rows != n or not {"key", "text"} <= set(columns):
        raise ValueError(f"the table of samples has {n_rows} rows for {n} samples, or lacks the column key or text")


def check_counts(clustering: Clustering) -> None:
    """Raise ValueError if clusters that have counts instead of labels are invalid."""
    counts, centroids = clustering.sizes(), clustering.centroids
    if len(counts) != len(centroids) or centroids.numel() == 0 or not bool((counts > 0).all()):
        shape = f"{len(centroids)} clusters in {centroids.shape[1]} dimensions"
        raise ValueError(f"{len(counts)} counts for {shape}; every count must be above 0")
    if not bool(centroids.isfinite().all()):
        raise ValueError("centroids are not finite")
