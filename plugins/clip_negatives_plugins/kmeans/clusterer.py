"""k-means, with faiss on the CPU and torch on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    default_n_clusters_of,
    load_faiss,
    non_finite_row,
)
from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_choice
from clip_negatives.interfaces import Clustering
from clip_negatives_plugins.kmeans.lloyd import Assignment, Lloyd

Precision = Literal["float32", "tf32", "bfloat16"]
BLOCK = 4096  # rows that are compared at a time, to count different samples


@dataclass
class KMeans:
    """k-means without empty clusters.

    Args:
        n_clusters: K; None uses `clip_negatives.clustering.options.default_n_clusters_of`.
        n_iter: iterations of Lloyd's algorithm, at least 1.
        n_redo: runs from different starts, at least 1; the best run is used.
        spherical: keep centroids at unit length, so that the nearest centroid has the highest cosine.
        seed: seed of the starts; None draws it from the generator of `fit`.
        max_samples_per_cluster: limit of random samples per cluster that train the centroids; then all samples are assigned.
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
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("n_clusters", "n_iter", "n_redo", "max_samples_per_cluster")}
        check_counts("kmeans", seed=self.seed, **counts)
        check_device("kmeans", self.device)
        check_choice("precision of kmeans", self.precision, get_args(Precision))

    def check_samples(self, n_samples: int) -> None:
        """Check that there are not more clusters than samples.

        Raises:
            InputError: K > N.
        """
        if self.n_clusters is not None:
            check_n_clusters(self.n_clusters, n_samples)

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features`, float, shape (N, D).

        Returns:
            Labels int64 (N,) and centroids float32 (K, D); every cluster holds at least one sample.

        Raises:
            InputError: features have a wrong shape or dtype or are not finite, K > N, or fewer than K samples differ.
        """
        check_features(features)
        if (row := non_finite_row(features)) is not None:
            raise InputError(f"Features contain NaN or infinity, first in row {row}. Check that sample.")
        self.check_samples(len(features))
        k = self.n_clusters or default_n_clusters_of((block.float() for block in features.split(BLOCK)), len(features))
        random_seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        run = self._with_faiss if torch.device(self.device).type == "cpu" else self._with_torch
        assignment, centroids = run(features, k, random_seed if self.seed is None else self.seed)
        return _without_empty(features, assignment, centroids, self.spherical)

    def _with_faiss(self, features: Tensor, k: int, seed: int) -> tuple[Assignment, Tensor]:
        """Return the cluster of each sample and the centroids."""
        dim = features.shape[1]
        engine = load_faiss().Kmeans(
            dim,
            k,
            niter=self.n_iter,
            nredo=self.n_redo,
            seed=seed,
            spherical=self.spherical,
            max_points_per_centroid=self.max_samples_per_cluster,
            min_points_per_centroid=1,
        )
        data = features.float().contiguous().numpy()
        engine.train(data)
        distances, labels = engine.index.search(data, 1)
        # For unit-length centroids, faiss returns inner products; the negative grows with the distance.
        far = torch.from_numpy(distances[:, 0]) * (-1.0 if self.spherical else 1.0)
        return Assignment(torch.from_numpy(labels[:, 0].copy()), far), torch.tensor(engine.centroids).view(k, dim)

    def _with_torch(self, features: Tensor, k: int, seed: int) -> tuple[Assignment, Tensor]:
        """Return the same as `_with_faiss`, computed on the device, which holds only the training samples at once."""
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        lloyd = Lloyd(k, self.n_iter, self.n_redo, self.spherical, dtype)
        rows = torch.randperm(len(features), generator=generator)[: k * self.max_samples_per_cluster].sort().values
        with _tensor_cores(self.precision == "tf32"):
            centroids = lloyd.centroids(features[rows].to(self.device, torch.float32), generator=generator)
            labels, far = lloyd.assign(features, centroids)
        return Assignment(labels.cpu(), far.cpu()), centroids.cpu()


@contextmanager
def _tensor_cores(allowed: bool) -> Iterator[None]:
    """Allow or forbid tensor cores for float32 products, and restore the setting afterwards."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # from torch 2.9 on; once set, the older functions raise an error
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if allowed else "ieee"
    else:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        if hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)


def _without_empty(features: Tensor, assignment: Assignment, centroids: Tensor, spherical: bool) -> Clustering:
    """Move into each empty cluster the sample farthest from its centroid, but never the last sample of a cluster."""
    labels, far = assignment
    sizes = labels.bincount(minlength=len(centroids))
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        check_distinct(len(features.unique(dim=0)), len(centroids))
    farthest = iter(far.argsort(descending=True).tolist() if empty else [])  # rarely needed, and long: N numbers
    while empty:
        sample = next(farthest)
        old_cluster = int(labels[sample])
        if sizes[old_cluster] > 1:
            cluster = empty.pop()
            labels[sample] = cluster
            sizes[cluster] += 1
            sizes[old_cluster] -= 1
            point = features[sample].float()
            centroids[cluster] = F.normalize(point, dim=0) if spherical else point
    return Clustering(labels, centroids)
