"""Which clusters meet in a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering, SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation, shuffle_rows


class _Clustered(PlannedSampler):
    def __init__(self, context: SamplingContext, by: str = "image") -> None:
        super().__init__(context, self._plan)
        if by not in ("image", "text"):
            raise InputError(f"Expected by to be image or text, got {by!r}.")
        if context.clusters is None:
            raise InputError("Expected clusters, which this sampler needs, got none. Prepare the data first.")
        self.clusters = context.clusters
        self.by = by

    @property
    def clustering(self) -> Clustering:
        return self.clusters.image if self.by == "image" else self.clusters.text

    @property
    def similarity(self) -> Tensor:
        return self.clusters.similarity_of(self.by, "a sampler of batches by cluster")

    def _plan(self, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def _in_order(self, rank: Tensor, generator: torch.Generator) -> Tensor:
        """Return the samples of an epoch sorted by the rank of their cluster, at random within one."""
        used = permutation(self.context.n_samples, generator)[: len(self) * self.step_size]
        return used[rank[self.clustering.labels[used.long()]].argsort(stable=True)]

    def _dealt(self, rank: Tensor, generator: torch.Generator) -> Tensor:
        """Deal the sorted samples out to the steps, one to each in turn."""
        plan = self._in_order(rank, generator).view(self.step_size, len(self)).T.contiguous()
        shuffle_rows(plan, generator)
        return plan[torch.randperm(len(self), generator=generator)]


class OneCluster(_Clustered):
    """Fill each step with samples of one cluster, and of those nearest to it where it has too few.

    For each step a cluster is drawn, each as probably as it has samples left in this epoch; the step takes what fits of them,
    at random, and goes on with the cluster whose centroid is most similar to the drawn one, and so on until it is full. Source:
    topic-aware batches of TAS-B (Hofstätter et al., 2021, arXiv:2104.06967), which draws a cluster for each batch of 32 from
    2000 clusters of 400 000 queries, so that every cluster fills a batch. Our choice: no sample comes twice an epoch, and
    clusters smaller than a step are joined, which makes a step the same kind of thing at any number of clusters. The last steps
    of an epoch get what is left, which is less alike. Sign: collects what is similar, by the frozen similarity.

    Args:
        context: what to sample for.
        by: clusters of the "image" or the "text".

    Raises:
        InputError: `by` is neither, or there are no clusters.
        DataError: one step needs more samples than there are.
    """

    def _plan(self, generator: torch.Generator) -> Tensor:
        samples = self._in_order(torch.arange(self.clustering.n_clusters), generator)
        left = self.clustering.labels[samples.long()].bincount(minlength=self.clustering.n_clusters)
        starts = (left.cumsum(0) - left).tolist()
        steps = []
        for _ in range(len(self)):
            drawn = int(torch.multinomial(left.double(), 1, generator=generator))
            parts, missing = [], self.step_size
            for cluster in self._nearest(drawn, left):
                taken = min(missing, int(left[cluster]))
                parts.append(samples[starts[cluster] : starts[cluster] + taken])
                starts[cluster] += taken
                left[cluster] -= taken
                missing -= taken
                if missing == 0:
                    break
            steps.append(torch.cat(parts))
        plan = torch.stack(steps)
        shuffle_rows(plan, generator)
        return plan[torch.randperm(len(self), generator=generator)]

    def _nearest(self, drawn: int, left: Tensor) -> Iterator[int]:
        """Yield a cluster and then the others that have samples left, the most similar first."""
        yield drawn
        order = self.similarity[drawn].masked_fill(left == 0, -torch.inf).argsort(descending=True, stable=True)
        yield from (cluster for cluster in order.tolist() if cluster != drawn)


class ClusterStratified(_Clustered):
    """Give every step the clusters in the proportions that they have in the data.

    The samples, sorted by cluster, are dealt out to the steps one by one: of a cluster of n samples each step gets n / steps,
    rounded up or down. Stratified sampling, as in surveys; the paper's default does the same by both clusters and then mends
    what stands alone. Sign: spreads what is similar, by the frozen similarity.

    Args:
        context: what to sample for.
        by: clusters of the "image" or the "text".

    Raises:
        InputError: `by` is neither, or there are no clusters.
        DataError: one step needs more samples than there are.
    """

    def _plan(self, generator: torch.Generator) -> Tensor:
        return self._dealt(torch.randperm(self.clustering.n_clusters, generator=generator), generator)


class ClusterDiverse(_Clustered):
    """Keep samples of one cluster, and of clusters that are near each other, apart.

    As `ClusterStratified`, but the clusters are sorted along the direction in which their similarity varies most slowly (the
    Fiedler vector of the graph of their cosines), so that dealing keeps near clusters apart as well. Our choice throughout: a
    counterpart to `OneCluster`. Sign: spreads what is similar, by the frozen similarity.

    Args:
        context: what to sample for.
        by: clusters of the "image" or the "text".

    Raises:
        InputError: `by` is neither, or there are no clusters.
        DataError: one step needs more samples than there are.
    """

    def __init__(self, context: SamplingContext, by: str = "image") -> None:
        super().__init__(context, by)
        self.rank = along_the_graph(self.similarity)

    def _plan(self, generator: torch.Generator) -> Tensor:
        return self._dealt(self.rank, generator)


def along_the_graph(similarity: Tensor) -> Tensor:
    """Return the place of each cluster along the Fiedler vector of their similarity, int64, shape (K,).

    Examples:
        >>> near = torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.2], [0.9, 0.2, 1.0]])
        >>> place = along_the_graph(near)  # 2 lies between 0 and 1
        >>> int(place[2])
        1
    """
    if len(similarity) < 3:
        return torch.arange(len(similarity))
    edges = similarity.double().clamp(min=0).fill_diagonal_(0)
    _, vectors = torch.linalg.eigh(torch.diag(edges.sum(1)) - edges)
    place: Tensor = vectors[:, 1].argsort(stable=True).argsort()
    return place
