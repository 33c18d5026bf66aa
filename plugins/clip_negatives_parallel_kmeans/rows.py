"""The rows of features, read a block at a time from a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives_parallel_kmeans.ranks import Ranks

DIGESTED_ROWS = 1024
"""Rows, evenly spaced, by which a checkpoint knows its features."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Hold the features to cluster: all rows of a tensor, or some.

    Attributes:
        features: float, shape (N, D).
        block_size: rows that are read at a time.
        index: the rows that are meant, ascending, int64, shape (n,); None for all.
    """

    features: Tensor
    block_size: int
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features) if self.index is None else len(self.index)

    @property
    def dim(self) -> int:
        """Return D."""
        return int(self.features.shape[1])

    def blocks(self, ranks: Ranks, rank: int | None = None) -> list[tuple[int, int]]:
        """Return where the blocks of a process start and stop: they are the same, whoever reads them."""
        share = ranks.share(math.ceil(len(self) / self.block_size), rank)
        return [(block * self.block_size, min((block + 1) * self.block_size, len(self))) for block in share]

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows side by side, float32, shape (stop - start, D), to be read only."""
        if self.index is not None:
            return self.take(torch.arange(start, stop))
        return self.features[start:stop].to("cpu", torch.float32).contiguous()

    def take(self, rows: Tensor) -> Tensor:
        """Return the rows of these numbers, float32, shape (len(rows), D)."""
        where = rows if self.index is None else self.index[rows]
        return self.features[where.long()].to("cpu", torch.float32).contiguous()

    def bound(self, ranks: Ranks) -> float:
        """Return the largest absolute value; each process reads its share.

        Raises:
            InputError: a value is not finite, on every process alike.
        """

        def scan() -> tuple[int, float]:
            largest = 0.0
            for start, stop in self.blocks(ranks):
                block = self.read(start, stop)
                here = max(-float((ends := block.aminmax()).min), float(ends.max))
                if not math.isfinite(here):
                    return start + int((~block.isfinite()).any(dim=1).nonzero()[0]), largest
                largest = max(largest, here)
            return len(self), largest

        row, largest = ranks.together(scan)
        if (first := -int(ranks.largest(-row))) < len(self):
            raise InputError(f"Expected finite features, got NaN or infinity, first in row {first}. Look at that sample.")
        return ranks.largest(largest)

    def spread(self, size: int, generator: torch.Generator) -> Tensor:
        """Return the numbers of `size` rows, ascending and different: one at random out of each of as many even stretches."""
        edges = torch.arange(size + 1, dtype=torch.float64) * (len(self) / size)
        edges = edges.long().clamp(max=len(self))
        edges[-1] = len(self)
        width = edges.diff()
        return edges[:-1] + (torch.rand(size, generator=generator, dtype=torch.float64) * width).long().minimum(width - 1)

    def digest(self) -> str:
        """Return a digest of some rows, evenly spaced."""
        some = torch.linspace(0, len(self) - 1, min(DIGESTED_ROWS, len(self)), dtype=torch.float64).long()
        return hashlib.sha256(self.take(some).numpy().tobytes()).hexdigest()

    def distinct(self, at_most: int) -> int:
        """Return how many rows differ, counted up to `at_most`."""
        seen: set[bytes] = set()
        for start in range(0, len(self), self.block_size):
            # + 0.0 makes one of the two zeros
            for row in (self.read(start, min(start + self.block_size, len(self))) + 0.0).numpy():
                seen.add(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
                if len(seen) >= at_most:
                    return at_most
        return len(seen)
