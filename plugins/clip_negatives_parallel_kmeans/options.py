"""What k-means is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from clip_negatives.errors import InputError

STARTS = ("kmeans++", "kmeans||", "random")


def default_n_clusters(n_samples: int) -> int:
    """Return K for N samples: ``4 sqrt(N)``, at most N // 8, at least 2 (1 for a single sample): that of ``kmeans``."""
    return max(min(2, n_samples), min(round(4 * math.sqrt(n_samples)), n_samples // 8))


@dataclass(frozen=True, slots=True)
class Options:
    """Hold the options of `clip_negatives_parallel_kmeans.clusterer.ParallelKMeans`, whose docstring explains them.

    Raises:
        InputError: a value is out of its range.
    """

    n_clusters: int | None
    n_iter: int
    spherical: bool
    seed: int | None
    init: str
    batch_size: int | None
    max_share: float | None
    levels: int
    tolerance: float
    block_size: int

    def __post_init__(self) -> None:
        for name in ("n_clusters", "n_iter", "batch_size", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected {name} of at least 1 for parallel_kmeans, got {value}.")
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise InputError(f"Expected seed within 0 .. {2**31 - 1} for parallel_kmeans, got {self.seed}.")
        if self.init not in STARTS:
            raise InputError(f"Expected init to be one of {', '.join(STARTS)} for parallel_kmeans, got {self.init!r}.")
        if self.max_share is not None and not 0 < self.max_share <= 1:
            raise InputError(f"Expected max_share over 0 and up to 1 for parallel_kmeans, got {self.max_share}.")
        if self.levels not in (1, 2):
            raise InputError(f"Expected levels of 1 or 2 for parallel_kmeans, got {self.levels}.")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"Expected tolerance of at least 0 and under 1 for parallel_kmeans, got {self.tolerance}.")

    def clusters_of(self, n_samples: int) -> int:
        """Return K for N samples.

        Raises:
            InputError: K > N, or K clusters of the largest size that is let through do not hold N samples.
        """
        k = default_n_clusters(n_samples) if self.n_clusters is None else self.n_clusters
        if k > n_samples:
            raise InputError(f"Expected at most as many clusters as samples ({n_samples}), got n_clusters={k}.")
        if self.max_share is not None and (most := self.capacity(n_samples)) * k < n_samples:
            raise InputError(
                f"Expected {k} clusters of max_share={self.max_share} to hold {n_samples} samples, got room for {most * k}. "
                f"Use max_share={-(-n_samples // k) / n_samples:.4g} or more, or more clusters."
            )
        return k

    def capacity(self, n_samples: int) -> int:
        """Return the most samples that a cluster may hold."""
        # A share such as 0.29 of 100 is 28.999999999999996 in floating point.
        return n_samples if self.max_share is None else math.floor(self.max_share * n_samples * (1 + 1e-12))


def device_named(name: str) -> torch.device:
    """Return the device, once it is known to be there; ``cuda`` is left to the process.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"Expected a device such as cpu or cuda for parallel_kmeans, got {name!r}.") from error
    there = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= there:
        raise InputError(
            f"Expected the device cpu, or cuda where there is a GPU, for parallel_kmeans, got {name!r} and no such device."
        )
    return device
