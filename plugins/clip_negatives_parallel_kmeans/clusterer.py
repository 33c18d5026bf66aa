"""The clusterer ``parallel_kmeans``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.encoders.encoder import device as own_device
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering
from clip_negatives_parallel_kmeans.assignment import Work
from clip_negatives_parallel_kmeans.checkpoint import Checkpoint
from clip_negatives_parallel_kmeans.iterations import KMeansRun
from clip_negatives_parallel_kmeans.levels import balanced, two_levels
from clip_negatives_parallel_kmeans.options import Options, device_named
from clip_negatives_parallel_kmeans.ranks import Ranks
from clip_negatives_parallel_kmeans.rows import Rows


class ParallelKMeans:
    """Cluster features with k-means on any number of processes, in memory for some blocks of rows, so that no cluster is empty.

    Each process reads its share of fixed blocks of rows, finds the nearest centroids and sums the rows of each cluster; the
    sums are added up over the processes. Beside the blocks a process holds K D numbers a few times over, 8 bytes for each
    sample of its share and, at the end, 12 for each of all: the labels.

    The same seed gives the same clusters on any number of processes, as far as each finds the same products of rows and
    centroids: sums are made on a grid of numbers on which float64 adds without rounding, so neither they nor the centroids
    depend on who added first, and what is drawn at random depends on no process. Processes with other numbers of threads, or
    other processors, may round a product otherwise and then put a sample that is as near to one centroid as to another, to
    seven digits, into the other cluster.

    Args:
        n_clusters: K; None takes ``4 sqrt(N)``, at most N // 8, as ``kmeans`` does.
        n_iter: most iterations; with `batch_size` most batches.
        spherical: whether centroids are kept at unit length, so that clusters are of cosine similarity.
        seed: seed of all that is drawn; None draws one from the generator that `fit` is given.
        init: ``kmeans++``, ``kmeans||`` or ``random``, see `clip_negatives_parallel_kmeans.start.first_centroids`.
        batch_size: rows of an iteration, in stretches of up to 256 rows side by side, a 64th of it at most, each once before
            any comes again (mini-batch k-means, Sculley, 2010); None takes all rows in each (Lloyd).
        max_share: the share of the samples that a cluster may hold, over 0 and up to 1; samples that are too many go to the
            nearest centroid with room, in each iteration over all rows and at the end. See
            `clip_negatives_parallel_kmeans.balance.balance`.
        levels: 1, or 2 for very large K: about sqrt(K) cells are found, and each is clustered by one process into a part of
            the K clusters. That takes N sqrt(K) D operations an iteration in place of N K D; a sample is in the nearest
            cluster of its cell, which need not be the nearest of all.
        tolerance: iterations end once the sum of the distances falls by no more than this share from one to the next, with
            `batch_size` from one pass over the data to the next. Our choice; 0 goes on while it falls.
        block_size: rows that are read at a time.
        device: "cpu", or a CUDA device such as "cuda", which is that of the process where torchrun started several, else the
            current one.

    Raises:
        InputError: a value is out of its range, or the device is not there.
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        n_iter: int = 25,
        spherical: bool = True,
        seed: int | None = None,
        init: str = "kmeans++",
        batch_size: int | None = None,
        max_share: float | None = None,
        levels: int = 1,
        tolerance: float = 1e-4,
        block_size: int = 65_536,
        device: str = "cpu",
    ) -> None:
        self.options = Options(n_clusters, n_iter, spherical, seed, init, batch_size, max_share, levels, tolerance, block_size)
        self.device = device_named(device)

    def check_samples(self, n_samples: int) -> None:
        """Refuse a number of samples that the options do not fit.

        Raises:
            InputError: K > N, or K clusters of `max_share` do not hold N samples.
        """
        self.options.clusters_of(n_samples)

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features`, float, shape (N, D), on this process alone, whether or not there are others.

        Returns:
            Labels int64 (N,) and centroids float32 (K, D); every cluster holds at least one sample.

        Raises:
            InputError: the shape or dtype is not that of features, a value is not finite, K > N, `max_share` leaves too
                little room, or there are fewer than K different samples.
        """
        return self._fit(features, generator, Ranks(), None)

    def fit_parallel(self, features: Tensor, *, generator: torch.Generator, checkpoint: Path | None = None) -> Clustering:
        """Cluster `features` on all processes of the default group of torch.distributed, each of which calls this.

        Args:
            features: all of them, float, shape (N, D), memory-mapped from a disk that all processes see.
            generator: seeded alike on all processes.
            checkpoint: folder where the state is kept after each iteration, and each finished cell of two levels. A call with
                the same features and options, on any number of processes, goes on there and ends with the same clusters as
                one that nothing disturbed. None keeps nothing.

        Returns:
            On every process what `fit` returns.

        Raises:
            InputError: as `fit`; on every process alike.
            ArtifactError: the checkpoint is of other features or options, damaged, or cannot be written.
            ProcessError: another process failed or was lost.
        """
        try:
            return self._fit(features, generator, Ranks.of_group(), checkpoint)
        except InputError as error:
            if error.rank is None:  # all raise the same; one says it
                error.rank = 0
            raise

    def _fit(self, features: Tensor, generator: torch.Generator, ranks: Ranks, folder: Path | None) -> Clustering:
        k, seed = self._agreed(features, generator, ranks)
        rows = Rows(features, self.options.block_size)
        work = Work.of(rows, ranks, self._own_device(), self.options.spherical)
        checkpoint = Checkpoint(folder, self._identity(rows, ranks, k, seed) if folder else {}, ranks)
        if self.options.levels == 1:
            found, centroids = KMeansRun(work, self.options, k, seed, checkpoint).clustered()
            labels = ranks.joined(found.labels)
        else:
            labels, centroids = two_levels(work, self.options, k, seed, checkpoint)
            if self.options.max_share is not None:
                labels = balanced(work, labels, centroids, self.options.capacity(len(rows)))
        return Clustering(labels.long(), centroids)

    def _agreed(self, features: Tensor, generator: torch.Generator, ranks: Ranks) -> tuple[int, int]:
        """Return K and the seed, once all processes are known to have features of one shape that the options fit."""
        drawn = int(torch.randint(2**31 - 1, (1,), generator=generator))
        mine = (tuple(features.shape), features.dtype, self.options)
        theirs, seed = ranks.first(lambda: (mine, drawn if self.options.seed is None else self.options.seed))

        def check() -> int:
            if features.ndim != 2 or 0 in features.shape:
                raise InputError(f"Expected features of shape (N, D), got {tuple(features.shape)}.")
            if not features.is_floating_point():
                raise InputError(f"Expected floating-point features, got {features.dtype}.")
            if mine != theirs:
                raise InputError(f"Expected the features and options of process 0, {theirs}, got {mine}. Give all the same.")
            return self.options.clusters_of(len(features))

        return ranks.together(check), seed

    def _own_device(self) -> torch.device:
        if self.device.type == "cuda" and self.device.index is None:
            own = torch.device(own_device())
            return own if own.index is not None else torch.device("cuda", torch.cuda.current_device())
        return self.device

    def _identity(self, rows: Rows, ranks: Ranks, k: int, seed: int) -> dict[str, object]:
        """Return what decides the clusters."""
        return {
            "shape": list(rows.features.shape),
            "dtype": str(rows.features.dtype),
            "features": ranks.first(rows.digest),
            "options": dataclasses.asdict(self.options),
            "n_clusters": k,
            "seed": seed,
        }
