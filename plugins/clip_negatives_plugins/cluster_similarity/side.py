"""Labels of one modality, and which pairs of its clusters are reliable, in one bit for each pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_negatives.losses.sparse_tables import look_up

ROWS_AT_ONCE = 256
"""Rows of a table whose bits are read at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Clusters of the images or of the texts.

    Attributes:
        labels: cluster of each sample, int64, shape (N,).
        table: which pairs of clusters are reliable: bits, uint8, shape (K, ceil(K / 8)), or a sparse table, bool, shape
            (K, m + 1).
        neighbours: clusters that each row of a sparse table lists, shape (K, m); None for a dense table.
    """

    labels: Tensor
    table: Tensor
    neighbours: Tensor | None

    @classmethod
    def of(cls, labels: Tensor, table: Tensor, neighbours: Tensor | None) -> Side:
        """Return the side with a table of bits for a dense table, bool, shape (K, K); a sparse table is kept."""
        if neighbours is None:
            table = torch.from_numpy(np.packbits(table.numpy(), axis=1, bitorder="little"))
        return cls(labels, table, neighbours)

    @property
    def n_clusters(self) -> int:
        """Return the number of clusters, K."""
        return len(self.table)

    @property
    def comparisons(self) -> int:
        """Return the comparisons for one pair: a sparse table compares with each listed cluster."""
        return 1 if self.neighbours is None else self.neighbours.shape[1]

    def between(self, left: Tensor, right: Tensor) -> Tensor:
        """Return whether the clusters of each pair of samples are reliable, bool; `left` and `right` broadcast."""
        rows, columns = self.labels[left], self.labels[right]
        if self.neighbours is not None:
            return look_up(self.table, self.neighbours, rows, columns)
        return (self.table[rows, columns >> 3] >> (columns & 7).to(torch.uint8) & 1).bool()

    def rows(self, clusters: Tensor) -> Tensor:
        """Return the rows of a dense table, bool, shape (len(clusters), K)."""
        bits = np.unpackbits(self.table[clusters].numpy(), axis=1, count=self.n_clusters, bitorder="little")
        return torch.from_numpy(bits).bool()

    def excluded(self) -> Tensor:
        """Return the number of samples that each cluster excludes as partners, int64, shape (K,); for sparse tables a bound."""
        sizes = self.labels.bincount(minlength=self.n_clusters)
        if self.neighbours is None:
            blocks = torch.arange(self.n_clusters).split(ROWS_AT_ONCE)
            return torch.cat([(~self.rows(block)).double().mv(sizes.double()).long() for block in blocks])
        lists = self.neighbours.long()
        unreliable = ~self.table[:, :-1]
        listed = (sizes[lists] * unreliable).sum(dim=1)
        listed_by = torch.zeros_like(sizes).index_add_(0, lists[unreliable], sizes[:, None].expand_as(lists)[unreliable])
        return listed + listed_by
