"""Rows of features, read block by block from a memory-mapped file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.clustering.options import count_distinct, non_finite_row
from clip_negatives.distributed.processes import Processes
from clip_negatives.errors import InputError

DIGESTED_ROWS = 1024  # number of evenly spaced rows that identify the features of a checkpoint


@dataclass(frozen=True, slots=True)
class Rows:
    """The features to cluster: all rows of a tensor, or selected rows."""

    features: Tensor  # float, shape (N, D)
    block_size: int  # rows that are read at a time
    index: Tensor | None = None  # the selected rows, ascending, int64, shape (n,); None for all

    def __len__(self) -> int:
        return len(self.features) if self.index is None else len(self.index)

    @property
    def dim(self) -> int:
        """Return D."""
        return int(self.features.shape[1])

    def blocks(self, processes: Processes) -> list[tuple[int, int]]:
        """Return start and stop of the blocks of this process; block limits do not depend on the number of processes."""
        share = processes.share(math.ceil(len(self) / self.block_size))
        return [(block * self.block_size, min((block + 1) * self.block_size, len(self))) for block in share]

    def read(self, start: int, stop: int) -> Tensor:
        """Return consecutive rows, float32, shape (stop - start, D); do not write to them."""
        if self.index is not None:
            return self.take(torch.arange(start, stop))
        return self.features[start:stop].to("cpu", torch.float32).contiguous()

    def take(self, rows: Tensor) -> Tensor:
        """Return the rows with these numbers, float32, shape (len(rows), D)."""
        index = rows if self.index is None else self.index[rows]
        return self.features[index.long()].to("cpu", torch.float32).contiguous()

    def bound(self, processes: Processes) -> float:
        """Return the largest absolute value; each process reads its share and checks that it is finite."""

        def scan() -> float:
            bound = 0.0
            for start, stop in self.blocks(processes):
                block = self.read(start, stop)
                ends = block.aminmax()
                largest = max(-float(ends.min), float(ends.max))
                if not math.isfinite(largest):
                    row = start + (non_finite_row(block) or 0)
                    raise InputError(f"Features contain NaN or infinity, first in row {row}. Check that sample.")
                bound = max(bound, largest)
            return bound

        # `together` raises the error of the lowest rank, which has the lowest rows: it names the first bad row.
        return max(processes.gather(processes.together(scan)))

    def spread(self, size: int, generator: torch.Generator) -> Tensor:
        """Return `size` different row numbers, ascending: a random row from each of `size` equal ranges of the data."""
        edges = torch.arange(size + 1, dtype=torch.float64) * (len(self) / size)
        edges = edges.long().clamp(max=len(self))
        edges[-1] = len(self)
        width = edges.diff()
        return edges[:-1] + (torch.rand(size, generator=generator, dtype=torch.float64) * width).long().minimum(width - 1)

    def digest(self) -> str:
        """Return a digest of `DIGESTED_ROWS` rows, evenly spaced."""
        rows = torch.linspace(0, len(self) - 1, min(DIGESTED_ROWS, len(self)), dtype=torch.float64).long()
        return hashlib.sha256(self.take(rows).numpy().tobytes()).hexdigest()

    def distinct(self, at_most: int) -> int:
        """Return the number of different rows, counted up to `at_most`."""
        return count_distinct(self.all_blocks(), at_most)

    def all_blocks(self) -> Iterator[Tensor]:
        """Yield all rows, float32, `block_size` at a time."""
        for start in range(0, len(self), self.block_size):
            yield self.read(start, min(start + self.block_size, len(self)))
