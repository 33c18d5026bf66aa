"""Sums in float64 that depend neither on the order of the numbers nor on the number of processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Grid of multiples of a power of two; sums of numbers on the grid are exact in float64.

    The sum of `count` numbers of at most `bound` is below 2^53 steps. No partial sum is rounded, so the order does not matter.
    For a million numbers up to 1, the step is 2^-31; for 1e9 numbers, it is 2^-21.
    """

    step: float  # the power of two

    @classmethod
    def of(cls, count: int, bound: float) -> Grid:
        """Return the finest grid for `count` numbers up to `bound`."""
        return cls(2.0 ** (math.ceil(math.log2(max(bound, 1e-30) * max(count, 1))) - 51))

    def round(self, numbers: Tensor, into: Tensor | None = None) -> Tensor:
        """Return the nearest numbers on the grid, float64, in the first rows of the buffer `into` if it is given."""
        lift = 1.5 * 2.0**52 * self.step  # adjacent float64 numbers of this size are one step apart
        wide = torch.empty_like(numbers, dtype=torch.float64) if into is None else into[: len(numbers)]
        return wide.copy_(numbers).add_(lift).sub_(lift)


class Tally:
    """Sum and number of the rows of each cluster, float64, in one buffer (K D + K + 1,) for a single all-reduce."""

    def __init__(self, k: int, dim: int, buffer: Tensor) -> None:
        self.buffer = buffer
        self.sums = buffer[: k * dim].view(k, dim)
        self.counts = buffer[k * dim : -1]
        self.spread = buffer[-1]  # sum of the distances of all rows to their centroids

    @classmethod
    def empty(cls, k: int, dim: int, device: torch.device) -> Tally:
        """Return the tally of no rows."""
        return cls(k, dim, torch.zeros(k * (dim + 1) + 1, dtype=torch.float64, device=device))

    def add(self, rows: Tensor, labels: Tensor, sign: int = 1) -> None:
        """Add rows, float64 on a grid, shape (B, D), to the clusters `labels`, int64, shape (B,); -1 subtracts them."""
        self.sums.index_add_(0, labels, rows, alpha=sign)
        self.counts.add_(labels.bincount(minlength=len(self.counts)), alpha=sign)
