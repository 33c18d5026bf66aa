"""Two levels, clusters within cells: for large K, comparing every row with every centroid takes too long."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives_plugins.kmeans.engines import BLOCK, Engine
from clip_negatives_plugins.kmeans.lloyd import Assignment


@dataclass(frozen=True, slots=True)
class Cells:
    """K clusters within cells; if there are as many cells as clusters, each cell is a cluster.

    Attributes:
        centres: centroids of the cells, float32, shape (C, D).
        starts: first cluster of each cell, and K, int64, shape (C + 1,).
        centroids: float32, shape (K, D), the clusters of the first cell first.
    """

    centres: Tensor
    starts: Tensor
    centroids: Tensor

    @classmethod
    def trained(cls, engine: Engine, sample: Tensor, n_cells: int, k: int, seed: int) -> Cells:
        """Cluster a sample into cells, and each cell into a part of the K clusters that is proportional to its size."""
        centres = engine.centroids(sample, n_cells, seed)
        if n_cells == k:
            return cls(centres, torch.arange(k + 1), centres)
        cell_of = engine.assign(sample, centres).labels
        sizes = cell_of.bincount(minlength=n_cells)
        centres, sizes = centres[sizes > 0], sizes[sizes > 0]
        parts = apportion(sizes, k)
        rows = cell_of.argsort(stable=True).split(sizes.tolist())
        trained = [engine.centroids(sample[own], part, seed) for own, part in zip(rows, parts.tolist(), strict=True)]
        return cls(centres, torch.cat([parts.new_zeros(1), parts.cumsum(0)]), torch.cat(trained))

    def assign(self, engine: Engine, features: Tensor) -> Assignment:
        """Return the nearest cluster of each row within its nearest cell."""
        if len(self.centres) == len(self.centroids):
            return engine.assign(features, self.centroids)
        labels, far = torch.empty(len(features), dtype=torch.int64), torch.empty(len(features))
        for start in range(0, len(features), BLOCK):
            block = features[start : start + BLOCK].float()
            cell_of = engine.assign(block, self.centres).labels
            sizes = cell_of.bincount(minlength=len(self.centres)).tolist()
            for cell, rows in enumerate(cell_of.argsort(stable=True).split(sizes)):
                if len(rows):
                    first, last = self.starts[cell : cell + 2].tolist()
                    found = engine.assign(block[rows], self.centroids[first:last])
                    labels[start + rows], far[start + rows] = found.labels + first, found.far
        return Assignment(labels, far)


def apportion(sizes: Tensor, k: int) -> Tensor:
    """Distribute K >= C clusters among C cells, in proportion to their sizes: from 1 to the number of rows of a cell.

    Examples:
        >>> apportion(torch.tensor([60, 30, 9, 1]), 10)
        tensor([5, 3, 1, 1])
    """
    quota = sizes.double() * k / int(sizes.sum())
    parts = quota.long().clamp(min=1).minimum(sizes)
    while (missing := k - int(parts.sum())) != 0:
        step = 1 if missing > 0 else -1
        free = parts < sizes if missing > 0 else parts > 1
        due = (step * (quota - parts)).masked_fill(~free, -torch.inf).argsort(descending=True, stable=True)
        parts[due[: min(abs(missing), int(free.sum()))]] += step
    return parts
