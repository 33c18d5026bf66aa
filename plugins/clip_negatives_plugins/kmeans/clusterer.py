"""k-means, with faiss on the CPU and torch on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.options import (
    check_counts,
    check_device,
    check_distinct,
    check_features,
    check_n_clusters,
    count_distinct,
    default_n_clusters,
    default_n_clusters_of,
    non_finite_row,
)
from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clustering
from clip_negatives_plugins.kmeans.balance import balance
from clip_negatives_plugins.kmeans.engines import BLOCK, Engine, FaissEngine, Precision, TorchEngine
from clip_negatives_plugins.kmeans.levels import Cells
from clip_negatives_plugins.kmeans.lloyd import Assignment


@dataclass
class KMeans:
    """k-means without empty clusters.

    The centroids are trained on a sample of the rows. Then each row is assigned to its nearest centroid, block by block, so
    that features may be memory-mapped: memory holds the sample, a block, and 12 bytes for each row.

    Args:
        n_clusters: K; None uses `clip_negatives.clustering.options.default_n_clusters_of`.
        n_iter: iterations of Lloyd's algorithm, at least 1.
        n_redo: runs from different starts, at least 1; the best run is used.
        spherical: keep centroids at unit length, so that the nearest centroid has the highest cosine.
        seed: seed of the sample and the starts; None draws it from the generator of `fit`.
        max_samples_per_cluster: limit of samples per cluster that train the centroids: one random row from each of equal
            ranges of the rows.
        max_share: largest share of the rows in one cluster, above 0 and at most 1. Surplus rows move to the nearest centroid
            with room, see `clip_negatives_plugins.kmeans.balance.balance`.
        levels: 1, or 2 for very large K. With 2, the sample is clustered into about sqrt(K) cells, and each cell into its part
            of the K clusters. An iteration takes N sqrt(K) D operations instead of N K D. A row is in the nearest cluster of
            its cell, which is not always the nearest cluster of all.
        device: "cpu" (faiss) or a CUDA device such as "cuda" (torch, `clip_negatives_plugins.kmeans.lloyd`). Both start from
            different samples, so the clusters differ, but they fit equally well.
        precision: dtype of the search for the nearest centroid on a GPU: "float32", "tf32" (float32 on tensor cores) or
            "bfloat16".

    Raises:
        InputError: a value is out of range, or this machine has no such device.
    """

    n_clusters: int | None = None
    n_iter: int = 25
    n_redo: int = 1
    spherical: bool = True
    seed: int | None = None
    max_samples_per_cluster: int = 256
    max_share: float | None = None
    levels: Literal[1, 2] = 1
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("n_clusters", "n_iter", "n_redo", "max_samples_per_cluster")}
        check_counts("kmeans", seed=self.seed, **counts)
        check_device("kmeans", self.device)
        check_choice("precision of kmeans", self.precision, get_args(Precision))
        check_number("max_share of kmeans", self.max_share, above=0, at_most=1)
        check_number("levels of kmeans", self.levels, at_least=1, at_most=2)

    def check_samples(self, n_samples: int) -> None:
        """Check that there are not more clusters than samples, and that `max_share` leaves room for all samples.

        Raises:
            InputError: K > N, or K clusters of the largest size hold fewer than N samples.
        """
        k = self.n_clusters or default_n_clusters(n_samples)
        check_n_clusters(k, n_samples)
        self._check_room(k, n_samples)

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features`, float, shape (N, D).

        Returns:
            Labels int64 (N,) and centroids float32 (K, D); every cluster holds at least one sample.

        Raises:
            InputError: features have a wrong shape or dtype or are not finite, K > N, `max_share` leaves too little room, or
                fewer than K samples differ.
        """
        check_features(features)
        for number, block in enumerate(features.split(BLOCK)):
            if (row := non_finite_row(block)) is not None:
                raise InputError(f"Features contain NaN or infinity, first in row {number * BLOCK + row}. Check that sample.")
        self.check_samples(len(features))
        k = self.n_clusters or default_n_clusters_of((block.float() for block in features.split(BLOCK)), len(features))
        self._check_room(k, len(features))
        random_seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        engine, seed = self._engine(), random_seed if self.seed is None else self.seed
        sample = features[_training_rows(len(features), k * self.max_samples_per_cluster, seed)].float()
        cells = Cells.trained(engine, sample, k if self.levels == 1 else math.ceil(math.sqrt(k)), k, seed)
        assignment, centroids = cells.assign(engine, features), cells.centroids.cpu()
        _fill_empty(features, assignment, centroids, self.spherical)
        if self.max_share is not None:
            balance(engine, features, assignment, centroids, self._capacity(len(features)))
        return Clustering(assignment.labels, centroids)

    def _engine(self) -> Engine:
        if torch.device(self.device).type == "cpu":
            return FaissEngine(self.n_iter, self.n_redo, self.spherical)
        return TorchEngine(self.n_iter, self.n_redo, self.spherical, self.device, self.precision)

    def _capacity(self, n_samples: int) -> int:
        """Return the largest allowed number of samples in a cluster."""
        # In floating point, 0.29 * 100 is 28.999999999999996.
        return n_samples if self.max_share is None else math.floor(self.max_share * n_samples * (1 + 1e-12))

    def _check_room(self, k: int, n_samples: int) -> None:
        capacity = self._capacity(n_samples)
        if capacity * k < n_samples:
            or_more_clusters = ", or more clusters" if capacity else ""  # clusters of no sample never suffice
            raise InputError(
                f"{k} clusters with max_share={self.max_share} hold only {capacity * k} of {n_samples} samples. "
                f"Use max_share={-(-n_samples // k) / n_samples:.4g} or more{or_more_clusters}."
            )


def _training_rows(n_rows: int, at_most: int, seed: int) -> Tensor | slice:
    """Return one random row of each of `at_most` equal ranges, or all rows if there are not more."""
    if n_rows <= at_most:
        return slice(None)
    limits = torch.arange(at_most + 1) * n_rows // at_most
    drawn = torch.rand(at_most, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return limits[:-1] + (drawn * limits.diff()).long()


def _fill_empty(features: Tensor, assignment: Assignment, centroids: Tensor, spherical: bool) -> None:
    """Move into each empty cluster the sample farthest from its centroid, but never the last sample of a cluster."""
    labels, far = assignment
    sizes = labels.bincount(minlength=len(centroids))
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        check_distinct(count_distinct(features.split(BLOCK), len(centroids)), len(centroids))
    farthest = iter(far.argsort(descending=True).tolist() if empty else [])  # rarely needed, and long: N numbers
    while empty:
        sample = next(farthest)
        old_cluster = int(labels[sample])
        if sizes[old_cluster] > 1:
            cluster = empty.pop()
            labels[sample], far[sample] = cluster, -torch.inf  # it is the centroid
            sizes[cluster] += 1
            sizes[old_cluster] -= 1
            point = features[sample].float()
            centroids[cluster] = F.normalize(point, dim=0) if spherical else point
