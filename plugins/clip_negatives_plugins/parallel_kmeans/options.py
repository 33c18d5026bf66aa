"""Options of the clusterer ``parallel_kmeans``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from clip_negatives.clustering.options import check_counts, check_n_clusters, default_n_clusters
from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_choice, check_number

Start = Literal["kmeans++", "kmeans||", "random"]


@dataclass(frozen=True)
class Options:
    """Options of `clip_negatives_plugins.parallel_kmeans.clusterer.ParallelKMeans`, which documents them."""

    n_clusters: int | None = None
    n_iter: int = 25
    spherical: bool = True
    seed: int | None = None
    init: Start = "kmeans++"
    batch_size: int | None = None
    max_share: float | None = None
    levels: Literal[1, 2] = 1
    tolerance: float = 1e-4
    block_size: int = 65_536

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("n_clusters", "n_iter", "batch_size", "block_size")}
        check_counts("parallel_kmeans", seed=self.seed, **counts)
        check_choice("init of parallel_kmeans", self.init, get_args(Start))
        check_number("max_share of parallel_kmeans", self.max_share, above=0, at_most=1)
        check_number("levels of parallel_kmeans", self.levels, at_least=1, at_most=2)
        check_number("tolerance of parallel_kmeans", self.tolerance, at_least=0, below=1)

    def clusters_of(self, n_samples: int, default: int | None = None) -> int:
        """Return K for N samples, after a check: K is at most N, and K clusters of the largest size have room for N samples.

        `default` replaces the default K, `default_n_clusters(n_samples)`.
        """
        k = self.n_clusters or default or default_n_clusters(n_samples)
        check_n_clusters(k, n_samples)
        if (room := self.capacity(n_samples) * k) < n_samples:
            or_more_clusters = ", or more clusters" if self.capacity(n_samples) else ""  # clusters of no sample never suffice
            raise InputError(
                f"{k} clusters with max_share={self.max_share} hold only {room} of {n_samples} samples. "
                f"Use max_share={-(-n_samples // k) / n_samples:.4g} or more{or_more_clusters}."
            )
        return k

    def capacity(self, n_samples: int) -> int:
        """Return the largest allowed number of samples in a cluster."""
        # In floating point, 0.29 * 100 is 28.999999999999996.
        return n_samples if self.max_share is None else math.floor(self.max_share * n_samples * (1 + 1e-12))
