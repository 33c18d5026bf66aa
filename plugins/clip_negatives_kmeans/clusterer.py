"""k-means: by faiss on the CPU, in torch on a GPU."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering
from clip_negatives_kmeans.lloyd import Lloyd

PRECISIONS = ("float32", "tf32", "bfloat16")


def default_n_clusters(n_samples: int) -> int:
    """Return K for N samples: ``4 sqrt(N)``, at most N // 8, at least 2 (1 for a single sample).

    Our choice: large enough that a cluster is a kind of thing and not a theme, small enough that it holds several samples and
    that a K x K table stays small (K = 4,000 for a million samples, a table of 64 MB).
    """
    return max(min(2, n_samples), min(round(4 * math.sqrt(n_samples)), n_samples // 8))


class KMeans:
    """Cluster features with k-means, so that no cluster is empty.

    Args:
        n_clusters: K; None takes `default_n_clusters` of N.
        n_iter: iterations of Lloyd's algorithm, at least 1.
        n_redo: runs from different starts, of which the best is kept, at least 1.
        spherical: whether centroids are kept at unit length, so that clusters are of cosine similarity.
        seed: seed of the starts; None draws one from the generator that `fit` is given.
        max_samples_per_cluster: centroids are trained on at most this many samples a cluster, chosen at random, and then all
            samples are assigned.
        device: "cpu" (faiss) or a CUDA device such as "cuda" (torch, `clip_negatives_kmeans.lloyd`). Their starts differ, so
            their clusters do; how well they fit does not.
        precision: in which nearest centroids are searched on a GPU: "float32", "tf32" (float32 on tensor cores) or "bfloat16".

    Raises:
        InputError: a value is out of its range, or the device is not there.
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        n_iter: int = 25,
        n_redo: int = 1,
        spherical: bool = True,
        seed: int | None = None,
        max_samples_per_cluster: int = 256,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        for name, value in (
            ("n_clusters", n_clusters),
            ("n_iter", n_iter),
            ("n_redo", n_redo),
            ("max_samples_per_cluster", max_samples_per_cluster),
        ):
            if value is not None and value < 1:
                raise InputError(f"Expected {name} of at least 1 for kmeans, got {value}.")
        if seed is not None and not 0 <= seed < 2**31:
            raise InputError(f"Expected seed within 0 .. {2**31 - 1} for kmeans, got {seed}.")
        self.n_clusters = n_clusters
        self.n_iter = n_iter
        self.n_redo = n_redo
        self.spherical = spherical
        self.seed = seed
        self.max_samples_per_cluster = max_samples_per_cluster
        self.device = _device(device)
        if precision not in PRECISIONS:
            raise InputError(f"Expected precision to be one of {', '.join(PRECISIONS)} for kmeans, got {precision!r}.")
        self.precision = precision

    def check_samples(self, n_samples: int) -> None:
        """Refuse fewer samples than clusters.

        Raises:
            InputError: K > N.
        """
        if self.n_clusters is not None and self.n_clusters > n_samples:
            raise InputError(f"Expected at most as many clusters as samples ({n_samples}), got n_clusters={self.n_clusters}.")

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features`, float, shape (N, D).

        Returns:
            Labels int64 (N,) and centroids float32 (K, D); every cluster holds at least one sample.

        Raises:
            InputError: the shape or dtype is not that of features, a value is not finite, K > N, or there are fewer than K
                different samples.
        """
        _check(features)
        n_samples = len(features)
        self.check_samples(n_samples)
        k = default_n_clusters(n_samples) if self.n_clusters is None else self.n_clusters
        drawn = int(torch.randint(2**31 - 1, (1,), generator=generator))
        run = self._by_faiss if self.device.type == "cpu" else self._by_torch
        labels, centroids, far = run(features, k, drawn if self.seed is None else self.seed)
        return _without_empty(features, labels, centroids, far, self.spherical)

    def _by_faiss(self, features: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels, centroids, and how far each sample is from its centroid."""
        faiss = _faiss()
        dim = features.shape[1]
        engine = faiss.Kmeans(
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
        # With unit-length centroids faiss searches by inner product: larger is nearer. Turn it so that larger is farther.
        far = torch.from_numpy(distances[:, 0]) * (-1.0 if self.spherical else 1.0)
        return torch.from_numpy(labels[:, 0].copy()), torch.tensor(engine.centroids).view(k, dim), far

    def _by_torch(self, features: Tensor, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same from the device; only the samples that centroids are trained on are held there at once."""
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        lloyd = Lloyd(k, self.n_iter, self.n_redo, self.spherical, dtype)
        some = torch.randperm(len(features), generator=generator)[: k * self.max_samples_per_cluster].sort().values
        with _tf32(self.precision == "tf32"):
            centroids = lloyd.centroids(features[some].to(self.device, torch.float32), generator=generator)
            labels, far = lloyd.assign(features, centroids)
        return labels.cpu(), centroids.cpu(), far.cpu()


def _faiss() -> Any:
    """Return faiss, loaded without a word: it logs, as errors, each of its builds for other processors that is not there."""
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss


def _device(name: str) -> torch.device:
    """Return the device, once it is known to be there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"Expected a device such as cpu or cuda for kmeans, got {name!r}.") from error
    there = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= there:
        raise InputError(f"Expected the device cpu, or cuda where there is a GPU, for kmeans, got {name!r} and no such device.")
    return device


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Let products of float32 run on tensor cores in between, or keep them from it."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # the older way is an error once someone has used the newer one
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if wanted else "ieee"
    else:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if wanted else "highest")
    try:
        yield
    finally:
        if hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)


def _check(features: Tensor) -> None:
    if features.ndim != 2 or 0 in features.shape:
        raise InputError(f"Expected features of shape (N, D), got {tuple(features.shape)}.")
    if not features.is_floating_point():
        raise InputError(f"Expected floating-point features, got {features.dtype}.")
    if not bool(features.isfinite().all()):
        row = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise InputError(f"Expected finite features, got NaN or infinity, first in row {row}. Look at that sample.")


def _without_empty(features: Tensor, labels: Tensor, centroids: Tensor, far: Tensor, spherical: bool) -> Clustering:
    """Give each empty cluster the sample that is farthest from its own centroid and does not leave that one empty."""
    sizes = labels.bincount(minlength=len(centroids))
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty and (distinct := len(features.unique(dim=0))) < len(centroids):
        raise InputError(
            f"Expected at least {len(centroids)} different samples for as many clusters, got {distinct}. "
            f"Use n_clusters={distinct} or fewer."
        )
    farthest = iter(far.argsort(descending=True).tolist() if empty else [])  # a list of N numbers, for what is seldom
    while empty:
        sample = next(farthest)
        home = int(labels[sample])
        if sizes[home] > 1:
            cluster = empty.pop()
            labels[sample] = cluster
            sizes[cluster] += 1
            sizes[home] -= 1
            point = features[sample].float()
            centroids[cluster] = F.normalize(point, dim=0) if spherical else point
    return Clustering(labels, centroids)
