"""GCBS: batches of consecutive samples, in an order that gives the similarity matrix a small bandwidth."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation, require_clusters, shuffle_rows
from clip_negatives_plugins.graph_batches.neighbours import Sides, frozen_vectors

ROWS = 1024
"""Rows of the similarity matrix per block."""

DRAWN = 2**20
"""Random pairs from which the threshold is estimated."""


class Gcbs(PlannedSampler):
    """Batches of consecutive samples, in an order that places similar samples side by side.

    Pairs with a similarity above the `quantile` of all pairs are the edges of a graph. The reverse Cuthill-McKee order of the
    graph has a small bandwidth, so consecutive samples are mostly linked. Each step is a range of this order.

    * Source: GCBS (Sachidananda et al., 2023, arXiv:2210.12874), with the quantile of its pseudocode. GCBS bounds the gap
      between the loss over all samples and the loss over the batch. It reorders each epoch with the model's own features; its
      repository contains no code.
    * Our choice: frozen features (``--refresh-every`` computes them anew with the model), and another start in each epoch.
    * Sign: collects similar samples, by the frozen similarity.

    Time: N^2 D operations once. Memory: N^2 (1 - quantile) edges.

    Args:
        quantile: share of the pairs that are not edges, 0 .. 1.
        by: similarity of the "image", the "text", or "both", their mean.

    Raises:
        InputError: the clusters were prepared without features.
        DataError: the data have fewer samples than one step.
    """

    def __init__(self, context: SamplingContext, quantile: float = 0.999, by: Sides = "both") -> None:
        super().__init__(context, self._plan)
        check_number("quantile", quantile, at_least=0, at_most=1)
        self.edges = edges_above(frozen_vectors(require_clusters(context, "gcbs"), by), quantile)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return all samples in the order of the graph, int64, shape (N,); the generator decides where it starts."""
        n = self.context.n_samples
        shuffled = permutation(n, generator).numpy()
        place = np.empty(n, dtype=np.int64)
        place[shuffled] = np.arange(n)
        rows, columns = self.edges
        graph = coo_array((np.ones(len(rows), dtype=np.int8), (place[rows], place[columns])), shape=(n, n)).tocsr()
        return torch.from_numpy(shuffled[reverse_cuthill_mckee(graph, symmetric_mode=True)].astype(np.int64))

    def _plan(self, generator: torch.Generator) -> Tensor:
        order = self.order(generator)
        # With a random start, the samples left out of the epoch differ from epoch to epoch.
        start = int(torch.randint(len(order), (1,), generator=generator))
        plan = order.roll(start)[: len(self) * self.step_size].view(len(self), self.step_size)
        shuffle_rows(plan, generator)
        return plan[torch.randperm(len(self), generator=generator)]


def edges_above(vectors: Tensor, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pairs whose similarity is above the quantile of all pairs, in both directions."""
    n = len(vectors)
    i, j = torch.randint(n, (2, min(DRAWN, n * n)), generator=torch.Generator().manual_seed(0))
    cosines = _cosines(vectors, i, j)
    threshold = np.quantile(cosines[i != j].numpy(), quantile) if bool((i != j).any()) else 1.0
    rows, columns = [], []
    for start in range(0, n, ROWS):
        near = vectors[start : start + ROWS] @ vectors.T > threshold
        near.diagonal(start).fill_(False)
        row, column = near.nonzero(as_tuple=True)
        rows.append((row + start).numpy())
        columns.append(column.numpy())
    return np.concatenate(rows), np.concatenate(columns)


def _cosines(vectors: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the dot products of pairs of rows, shape (M,); buffers are reused, since new ones would fragment the heap."""
    products = vectors.new_empty(len(i))
    left, right = (vectors.new_empty(ROWS, vectors.shape[1]) for _ in range(2))
    for block, a, b in zip(products.split(ROWS), i.split(ROWS), j.split(ROWS), strict=True):
        torch.index_select(vectors, 0, a, out=left[: len(a)])
        torch.index_select(vectors, 0, b, out=right[: len(a)])
        torch.sum(left[: len(a)].mul_(right[: len(a)]), dim=1, out=block)
    return products
