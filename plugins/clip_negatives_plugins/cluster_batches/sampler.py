"""Samplers that choose the clusters of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from clip_negatives.block_sampling import Block, BlockSampler
from clip_negatives.host.option_checks import check_choice
from clip_negatives.interfaces import Clustering, SamplingContext
from clip_negatives.sampling import require_clusters, shuffle_rows

Side = Literal["image", "text"]


class _ClusterBatches(BlockSampler):
    name: str

    def __init__(self, context: SamplingContext, by: Side = "image") -> None:
        super().__init__(context, self._plan)
        check_choice("by", by, get_args(Side))
        self.clusters = require_clusters(context, self.name)
        self.by = by

    @property
    def clustering(self) -> Clustering:
        return self.clusters.image if self.by == "image" else self.clusters.text

    @property
    def similarity(self) -> Tensor:
        return self.clusters.similarity_of(self.by, self.name)

    def _plan(self, generator: torch.Generator, block: Block) -> Tensor:
        raise NotImplementedError

    def _sorted(self, rank: Tensor, generator: torch.Generator, block: Block) -> Tensor:
        """Return the samples of a block, sorted by the rank of their cluster, in random order within each cluster."""
        used = block.samples(generator)[: block.n_steps * self.step_size]
        return used[rank[self.clustering.labels[used.long()]].argsort(stable=True)]

    def _dealt(self, rank: Tensor, generator: torch.Generator, block: Block) -> Tensor:
        """Return the steps: consecutive samples of the sorted order go to different steps."""
        rounds = self._sorted(rank, generator, block).view(self.step_size, block.n_steps)
        return self._shuffled(rounds.T.contiguous(), generator)

    def _shuffled(self, plan: Tensor, generator: torch.Generator) -> Tensor:
        shuffle_rows(plan, generator)
        return plan[torch.randperm(len(plan), generator=generator)]


class OneCluster(_ClusterBatches):
    """Batches of one cluster, filled up from the nearest clusters.

    Each step draws a cluster, with a probability proportional to the number of its samples that are left in this epoch. The
    step takes random samples of this cluster, then of the cluster with the most similar centroid, and so on until it is full.
    The last steps of an epoch get the remaining samples, which are less similar.

    * Source: the topic-aware batches of TAS-B (Hofstätter et al., 2021, arXiv:2104.06967). TAS-B draws batches of 32 from 2000
      clusters of 400 000 queries, so that one cluster always fills a batch.
    * Our choice: each sample comes once an epoch; clusters smaller than a step are combined.
    * Sign: collects similar samples, by the frozen similarity.

    Args:
        by: clusters of the "image" or the "text".

    Raises:
        InputError: there are no clusters.
        DataError: the data have fewer samples than one step.
    """

    name = "one_cluster"

    def __init__(self, context: SamplingContext, by: Side = "image") -> None:
        super().__init__(context, by)
        self.n_blocks = 1  # a smaller block would have too few samples of each cluster

    def _plan(self, generator: torch.Generator, block: Block) -> Tensor:
        samples = self._sorted(torch.arange(self.clustering.n_clusters), generator, block)
        left = self.clustering.labels[samples.long()].bincount(minlength=self.clustering.n_clusters)
        starts = (left.cumsum(0) - left).tolist()
        steps = []
        for _ in range(block.n_steps):
            first = int(torch.multinomial(left.double(), 1, generator=generator))
            parts, missing = [], self.step_size
            for cluster in self._nearest(first, left):
                taken = min(missing, int(left[cluster]))
                parts.append(samples[starts[cluster] : starts[cluster] + taken])
                starts[cluster] += taken
                left[cluster] -= taken
                missing -= taken
                if missing == 0:
                    break
            steps.append(torch.cat(parts))
        return self._shuffled(torch.stack(steps), generator)

    def _nearest(self, first: int, left: Tensor) -> Iterator[int]:
        """Yield the cluster `first`, then the other clusters with samples left, most similar first."""
        yield first
        order = self.similarity[first].masked_fill(left == 0, -torch.inf).argsort(descending=True, stable=True)
        yield from (cluster for cluster in order.tolist() if cluster != first)


class ClusterStratified(_ClusterBatches):
    """Batches in which every cluster has the same share as in the data.

    The samples are sorted by cluster and dealt out to the steps one by one. From a cluster of n samples, each step gets
    n / steps samples, rounded up or down. The default sampler `cluster_similarity` does the same with image and text clusters
    together; it also repairs steps in which a sample has no reliable incorrect pair.

    * Source: stratified sampling, as in surveys.
    * Sign: spreads similar samples over the steps, by the frozen similarity.

    Args:
        by: clusters of the "image" or the "text".

    Raises:
        InputError: there are no clusters.
        DataError: the data have fewer samples than one step.
    """

    name = "cluster_stratified"

    def _plan(self, generator: torch.Generator, block: Block) -> Tensor:
        return self._dealt(torch.randperm(self.clustering.n_clusters, generator=generator), generator, block)


class ClusterDiverse(_ClusterBatches):
    """Batches that keep similar clusters apart.

    Like `ClusterStratified`, but the clusters are sorted by the Fiedler vector of their similarities, so that similar clusters
    are adjacent. Dealing out samples in this order also keeps similar clusters apart.

    * Our choice: the whole method, as a counterpart to `OneCluster`.
    * Sign: spreads similar samples over the steps, by the frozen similarity.

    Args:
        by: clusters of the "image" or the "text".

    Raises:
        InputError: there are no clusters.
        DataError: the data have fewer samples than one step.
    """

    name = "cluster_diverse"

    def __init__(self, context: SamplingContext, by: Side = "image") -> None:
        super().__init__(context, by)
        self.rank = fiedler_rank(self.similarity)

    def _plan(self, generator: torch.Generator, block: Block) -> Tensor:
        return self._dealt(self.rank, generator, block)


def fiedler_rank(similarity: Tensor) -> Tensor:
    """Return the rank of each cluster along the Fiedler vector of their similarities, int64, shape (K,).

    Examples:
        >>> near = torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.2], [0.9, 0.2, 1.0]])
        >>> int(fiedler_rank(near)[2])  # cluster 2 lies between 0 and 1
        1
    """
    if len(similarity) < 3:
        return torch.arange(len(similarity))
    edges = similarity.double().clamp(min=0).fill_diagonal_(0)
    _, vectors = torch.linalg.eigh(torch.diag(edges.sum(1)) - edges)
    rank: Tensor = vectors[:, 1].argsort(stable=True).argsort()
    return rank
