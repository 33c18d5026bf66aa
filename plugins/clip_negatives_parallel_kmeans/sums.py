"""Sums in float64 that are the same in whatever order and by however many processes they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Round numbers to multiples of a power of two, so that their sums in float64 are exact.

    Up to `count` multiples of ``step``, each at most `bound`, add up to less than 2^53 steps: no sum of some of them is
    rounded, so none depends on the order. With a million numbers up to 1 the step is 2^-31; with 1e9, 2^-21.

    Attributes:
        step: the power of two.
    """

    step: float

    @classmethod
    def of(cls, count: int, bound: float) -> Grid:
        """Return the finest grid for `count` numbers up to `bound`."""
        return cls(2.0 ** (math.ceil(math.log2(max(bound, 1e-30) * max(count, 1))) - 51))

    def round(self, numbers: Tensor, into: Tensor | None = None) -> Tensor:
        """Return the nearest multiples, float64; in the first rows of `into` if that is given."""
        lift = 1.5 * 2.0**52 * self.step  # there the numbers of float64 are one step apart
        wide = torch.empty_like(numbers, dtype=torch.float64) if into is None else into[: len(numbers)]
        return wide.copy_(numbers).add_(lift).sub_(lift)


class Tally:
    """Sum the rows of each cluster, and count them.

    Attributes:
        sums: float64, shape (K, D).
        counts: float64, shape (K,).
        spread: sum of the distances of all rows from their centroids, float64, shape ().
    """

    def __init__(self, k: int, dim: int, device: torch.device) -> None:
        self.everything = torch.zeros(k * (dim + 1) + 1, dtype=torch.float64, device=device)
        self._shape = k, dim
        self._set_views()

    def _set_views(self) -> None:
        k, dim = self._shape
        self.sums = self.everything[: k * dim].view(k, dim)
        self.counts = self.everything[k * dim : -1]
        self.spread = self.everything[-1]

    def add(self, rows: Tensor, labels: Tensor, sign: int = 1) -> None:
        """Add rows, float64 on a grid, shape (B, D), to the clusters `labels`, int64, shape (B,); or take them away."""
        self.sums.index_add_(0, labels, rows, alpha=sign)
        self.counts.add_(labels.bincount(minlength=len(self.counts)), alpha=sign)

    def replaced(self, everything: Tensor) -> Tally:
        """Return the tally with another's numbers: the total over the processes."""
        self.everything = everything
        self._set_views()
        return self
