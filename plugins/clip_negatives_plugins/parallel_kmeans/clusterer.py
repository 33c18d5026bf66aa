"""The clusterer ``parallel_kmeans``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from clip_negatives.clustering.options import check_device, check_features, default_n_clusters_of
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.encoders.encoder import device as own_device
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering
from clip_negatives_plugins.parallel_kmeans.assignment import Job
from clip_negatives_plugins.parallel_kmeans.checkpoint import Checkpoint
from clip_negatives_plugins.parallel_kmeans.iterations import KMeansRun
from clip_negatives_plugins.parallel_kmeans.levels import balanced, two_levels
from clip_negatives_plugins.parallel_kmeans.options import Options
from clip_negatives_plugins.parallel_kmeans.rows import Rows


@dataclass(frozen=True)
class ParallelKMeans(Options):
    """k-means on any number of processes, block by block, without empty clusters.

    Each process reads its share of the blocks, finds the nearest centroids and sums the rows of each cluster; then the sums of
    all processes are added up. The memory of a process is some blocks, a few times K x D numbers, and 8 bytes for each sample
    of its share. At the end, it also holds 12 bytes for each sample of all processes.

    The same seed gives the same clusters on any number of processes, because sums are exact and random draws do not depend on
    the process. Other processors or numbers of threads may round a product differently; a sample that is equally near to two
    centroids, to seven digits, may then change its cluster.

    Args:
        n_clusters: K; None uses `clip_negatives.clustering.options.default_n_clusters_of`, as ``kmeans`` does.
        n_iter: maximum number of iterations; with `batch_size`, of batches.
        spherical: keep centroids at unit length, so that the nearest centroid has the highest cosine.
        seed: seed of all random draws; None draws it from the generator of `fit`.
        init: ``kmeans++``, ``kmeans||`` or ``random``, see `clip_negatives_plugins.parallel_kmeans.start.first_centroids`.
        batch_size: rows of an iteration (mini-batch k-means, Sculley, 2010); None uses all rows (Lloyd). Each pass over the
            data uses every row once. A batch consists of up to 256 consecutive rows from each of at least 64 places.
        max_share: largest share of the samples in one cluster, above 0 and at most 1. Surplus samples move to the nearest
            centroid with room, in each iteration over all rows and at the end. See
            `clip_negatives_plugins.parallel_kmeans.balance.balance`.
        levels: 1, or 2 for very large K. With 2, all processes find about sqrt(K) cells; then one process clusters each cell
            into its part of the K clusters. An iteration takes N sqrt(K) D operations instead of N K D. A sample is in the
            nearest cluster of its cell, which is not always the nearest cluster of all.
        tolerance: stop if the sum of the distances decreases by at most this share in an iteration, or with `batch_size` in a
            pass over the data; 0 continues as long as the sum decreases. The default is our choice.
        block_size: rows that are read at a time.
        device: "cpu", or a CUDA device. "cuda" is the current device; under torchrun, it is the device of the process.

    Raises:
        InputError: a value is out of range, or this machine has no such device.
    """

    device: str = field(default="cpu", compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device("parallel_kmeans", self.device)

    def check_samples(self, n_samples: int) -> None:
        """Check that there are not more clusters than samples, and that `max_share` leaves room for all samples."""
        self.clusters_of(n_samples)

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        """Cluster `features`, float, shape (N, D), on this process alone.

        Returns:
            Labels int64 (N,) and centroids float32 (K, D); every cluster holds at least one sample.

        Raises:
            InputError: features have a wrong shape or dtype or are not finite, K > N, `max_share` leaves too little room, or
                fewer than K samples differ.
        """
        return self._fit(features, generator, ALONE, None)

    def fit_parallel(self, features: Tensor, *, generator: torch.Generator, checkpoint: Path | None = None) -> Clustering:
        """Cluster `features` on all processes of torch.distributed's default group. Every process makes this call.

        Args:
            features: all features, float, shape (N, D), memory-mapped from a shared disk.
            generator: in the same state on all processes.
            checkpoint: folder for the state after each iteration and, with two levels, for finished cells. A later call with
                the same features and options, on any number of processes, continues from there. It gives the same clusters
                as an uninterrupted call. None stores nothing.

        Returns:
            The same as `fit`, on every process.

        Raises:
            InputError: as `fit`.
            ArtifactError: the checkpoint belongs to other features or options, is damaged, or cannot be written.
            ProcessError: another process failed or was lost.
        """
        return self._fit(features, generator, Processes.current(), checkpoint)

    def _fit(self, features: Tensor, generator: torch.Generator, processes: Processes, folder: Path | None) -> Clustering:
        k, seed = self._agreed(features, generator, processes)
        rows = Rows(features, self.block_size)
        if self.n_clusters is None:
            k = processes.first(lambda: self.clusters_of(len(rows), default_n_clusters_of(rows.all_blocks(), len(rows))))
        job = Job.of(rows, processes, self._own_device(), self.spherical)
        checkpoint = Checkpoint(folder, self._identity(rows, processes, k, seed) if folder else {}, processes)
        if self.levels == 1:
            assignment, centroids = KMeansRun(job, self, k, seed, checkpoint).clustered()
            labels = processes.concatenate(assignment.labels)
        else:
            labels, centroids = two_levels(job, self, k, seed, checkpoint)
            if self.max_share is not None:
                labels = balanced(job, labels, centroids, self.capacity(len(rows)))
        return Clustering(labels.long(), centroids)

    def _agreed(self, features: Tensor, generator: torch.Generator, processes: Processes) -> tuple[int, int]:
        """Check that all processes have the same options, and features of the same shape; return K and the seed."""
        random_seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        own = (tuple(features.shape), features.dtype, self)
        first, seed = processes.first(lambda: (own, random_seed if self.seed is None else self.seed))

        def check() -> int:
            check_features(features)
            if own != first:
                raise InputError(
                    f"Process {processes.rank} has other features or options ({own}) than process 0 ({first}). "
                    "Give all processes the same features and options."
                )
            return self.clusters_of(len(features))

        return processes.together(check), seed

    def _own_device(self) -> torch.device:
        device = torch.device(own_device() if self.device == "cuda" else self.device)
        return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device

    def _identity(self, rows: Rows, processes: Processes, k: int, seed: int) -> dict[str, object]:
        """Return everything that the clusters depend on."""
        return {
            "shape": list(rows.features.shape),
            "dtype": str(rows.features.dtype),
            "features": processes.first(rows.digest),
            "options": {option.name: getattr(self, option.name) for option in fields(Options)},
            "n_clusters": k,
            "seed": seed,
        }
