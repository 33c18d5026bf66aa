"""What keeps clusters and the table of their samples from being of the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from clip_negatives.interfaces import Clustering

SIDES = ("image", "text")


def fault_of(
    image: Clustering, text: Clustering, features: Mapping[str, tuple[int, ...]], rows: int, columns: Sequence[str]
) -> str | None:
    """Say what is wrong with clusters, shapes of features and a table, or do not fit together of them; None if nothing is.

    Args:
        image: clusters of the images.
        text: clusters of the texts.
        features: shapes by side, of those that are kept.
        rows: of the table of samples.
        columns: its names.
    """
    n = image.n_samples
    for name, clustering in zip(SIDES, (image, text), strict=True):
        labels, centroids = clustering.labels, clustering.centroids
        if labels.dtype != torch.int64 or labels.shape != (n,) or centroids.ndim != 2 or n == 0:
            return f"{name} labels or centroids have the wrong shape or type"
        if not 0 < len(centroids) <= n or centroids.shape[1] == 0:  # before anything of that size is made
            return f"there are {len(centroids)} {name} clusters of {n} samples, in {centroids.shape[1]} dimensions"
        if not 0 <= int(labels.min()) <= int(labels.max()) < clustering.n_clusters:
            return f"{name} labels name clusters that do not exist"
        if (empty := (clustering.sizes() == 0).nonzero().flatten()).numel():
            return f"no {name} is in cluster {int(empty[0])}"
        if not bool(centroids.isfinite().all()):
            return f"{name} centroids are not finite"
        if features.get(name, (n, centroids.shape[1])) != (n, centroids.shape[1]):
            return f"the {name} features are of another number of samples or another size than the clusters"
    return fault_of_table(n, rows, columns)


def fault_of_table(n: int, rows: int, columns: Sequence[str]) -> str | None:
    """Say what keeps a table from being that of `n` samples, or None."""
    if rows != n or not {"key", "text"} <= set(columns):
        return f"the table of samples has {rows} rows for {n} samples, or lacks a column key or text"
    return None


def fault_of_counted(clustering: Clustering) -> str | None:
    """Say what is wrong with clusters that have counts in the place of labels, or None."""
    counts, centroids = clustering.sizes(), clustering.centroids
    if len(counts) != len(centroids) or centroids.numel() == 0 or not bool((counts > 0).all()):
        return f"{len(counts)} sizes, some perhaps 0, of {len(centroids)} clusters in {centroids.shape[1]} dimensions"
    return None if bool(centroids.isfinite().all()) else "centroids are not finite"
