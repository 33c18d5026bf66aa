"""Batches along the diagonal of a matrix of similarities that was put in order."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation, shuffle_rows
from clip_negatives_graph_batches.neighbours import frozen_vectors

ROWS = 1024
"""Rows of similarities that are held at a time."""

DRAWN = 2**20
"""Pairs from which the threshold is estimated."""


class Gcbs(PlannedSampler):
    """Order the samples so that similar ones stand side by side, and cut the order into steps.

    Similarities over their `quantile` make the edges of a graph; the reverse Cuthill-McKee order of it has a small bandwidth,
    so consecutive samples are joined; each step is a stretch of it. Source: GCBS (Sachidananda et al., 2023,
    arXiv:2210.12874), which bounds the gap between the loss over all samples and that over the batch, and orders anew each
    epoch with the model's own features; its repository holds no code. Here the features are frozen (``--refresh-every`` makes
    them live), and each epoch starts from other samples; the quantile is that of their pseudocode. Sign: collects what is
    similar, by the frozen similarity.

    Time: N^2 D operations once; memory: the edges, N^2 (1 - quantile).

    Args:
        context: what to sample for.
        quantile: share of the pairs that are no edge, 0 .. 1.
        by: similarity of the "image", the "text", or "both", their mean.

    Raises:
        InputError: a value is out of its range, or the clusters have no such features.
        DataError: one step needs more samples than there are.
    """

    def __init__(self, context: SamplingContext, quantile: float = 0.999, by: str = "both") -> None:
        super().__init__(context, self._plan)
        if not 0 <= quantile <= 1:
            raise InputError(f"Expected a quantile within 0 .. 1, got {quantile}.")
        self.edges = edges_over(frozen_vectors(context.clusters, by), quantile)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return all samples in the order of the graph, starting from others with another generator, int64, shape (N,)."""
        n = self.context.n_samples
        shuffled = permutation(n, generator).numpy()
        place = np.empty(n, dtype=np.int64)
        place[shuffled] = np.arange(n)
        rows, columns = self.edges
        graph = coo_array((np.ones(len(rows), dtype=np.int8), (place[rows], place[columns])), shape=(n, n)).tocsr()
        return torch.from_numpy(shuffled[reverse_cuthill_mckee(graph, symmetric_mode=True)].astype(np.int64))

    def _plan(self, generator: torch.Generator) -> Tensor:
        order = self.order(generator)
        # Another stretch of the order is left over each epoch.
        start = int(torch.randint(len(order), (1,), generator=generator))
        plan = order.roll(start)[: len(self) * self.step_size].view(len(self), self.step_size)
        shuffle_rows(plan, generator)
        return plan[torch.randperm(len(self), generator=generator)]


def edges_over(vectors: Tensor, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pairs whose similarity is over the quantile of all pairs, both directions of each."""
    n = len(vectors)
    draw = torch.Generator().manual_seed(0)
    i, j = torch.randint(n, (2, min(DRAWN, n * n)), generator=draw)
    some = _cosines(vectors, i, j)
    threshold = np.quantile(some[i != j].numpy(), quantile) if bool((i != j).any()) else 1.0
    rows, columns = [], []
    for start in range(0, n, ROWS):
        near = vectors[start : start + ROWS] @ vectors.T > threshold
        near.diagonal(start).fill_(False)
        row, column = near.nonzero(as_tuple=True)
        rows.append((row + start).numpy())
        columns.append(column.numpy())
    return np.concatenate(rows), np.concatenate(columns)


def _cosines(vectors: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the dot products of pairs of rows; of buffers that stay, as allocating them anew leaves the heap full of holes."""
    found = vectors.new_empty(len(i))
    left, right = (vectors.new_empty(ROWS, vectors.shape[1]) for _ in range(2))
    for some, a, b in zip(found.split(ROWS), i.split(ROWS), j.split(ROWS), strict=True):
        torch.index_select(vectors, 0, a, out=left[: len(a)])
        torch.index_select(vectors, 0, b, out=right[: len(a)])
        torch.sum(left[: len(a)].mul_(right[: len(a)]), dim=1, out=some)
    return found
