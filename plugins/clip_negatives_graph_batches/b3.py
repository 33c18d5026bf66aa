"""Batches made of small communities of samples that a frozen similarity ranks near each other, but not too near."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation, shuffle_rows
from clip_negatives_graph_batches.neighbours import frozen_vectors, ranked_neighbours


class B3(PlannedSampler):
    """Make each step of communities of samples that are near each other by rank, leaving out the very nearest.

    Samples i and j are joined where j has a rank within ``skip + 1 .. skip + window`` among i's neighbours: what is nearer is
    suspected to be a false negative. The graph is cut into communities, and random communities make a step. Source: B3
    (Thirukovalluru et al., 2025, arXiv:2505.11293), whose training code is not public, with teacher ranks and METIS. Here the
    ranks are those of the frozen features, and communities grow greedily from random samples, anew each epoch: a member's
    unused neighbours by rank, one member after the other, then any unused sample. Default values are our choice. Sign:
    collects what is similar, by the frozen similarity.

    Time: N^2 D operations once for the neighbours, and a loop over N x window in Python an epoch: for up to about 1e6 samples.

    Args:
        context: what to sample for.
        skip: nearest ranks that are left out, at least 0.
        window: ranks after them that are joined, at least 1.
        community: samples of a community, at least 2.
        by: similarity of the "image", the "text", or "both", their mean.

    Raises:
        InputError: a value is out of its range, or the clusters have no such features.
        DataError: one step needs more samples than there are.
    """

    def __init__(self, context: SamplingContext, skip: int = 8, window: int = 16, community: int = 8, by: str = "both") -> None:
        super().__init__(context, self._plan)
        if skip < 0 or window < 1 or community < 2:
            raise InputError(
                "Expected skip of at least 0, window of at least 1 and community of at least 2, got "
                f"{skip}, {window} and {community}."
            )
        self.community = community
        self.neighbours = ranked_neighbours(frozen_vectors(context.clusters, by), skip + 1, skip + window)

    def _plan(self, generator: torch.Generator) -> Tensor:
        order = permutation(self.context.n_samples, generator)
        row = grown(self.neighbours, order.tolist(), self.community)
        whole = len(row) // self.community * self.community
        communities = row[:whole].view(-1, self.community)
        communities = communities[torch.randperm(len(communities), generator=generator)]
        # A step that is no multiple of the community's size shares one with the next.
        dealt = torch.cat([communities.flatten(), row[whole:]])
        plan = dealt[: len(self) * self.step_size].view(len(self), self.step_size)
        shuffle_rows(plan, generator)
        return plan


class HardPairs(B3):
    """Put each sample into a step with one of its nearest neighbours.

    As `B3` with communities of two: a step is half random samples, half hard negatives for them. Samples are paired as by
    HELIP (Wang et al., 2023, arXiv:2305.05208), which mines pairs that are near in both modalities, and NegCLIP (Yuksekgonul
    et al., 2023, arXiv:2210.01936), which adds similar images to the batch. There texts stand beside those of the batch, as
    `hard_texts` and `swapped_words` add them; here hard negatives are samples of the batch like any other. Sign: collects what
    is similar, by the frozen similarity.

    Args:
        context: what to sample for.
        skip: nearest ranks that are left out.
        window: ranks after them that are considered.
        by: similarity of the "image", the "text", or "both", their mean.

    Raises:
        InputError: as `B3`.
        DataError: as `B3`.
    """

    def __init__(self, context: SamplingContext, skip: int = 0, window: int = 16, by: str = "both") -> None:
        super().__init__(context, skip=skip, window=window, community=2, by=by)


def grown(neighbours: Tensor, order: list[int], size: int) -> Tensor:
    """Return all samples, those of one community side by side, `size` each.

    Args:
        neighbours: nearest first, -1 where there is none, int64, shape (N, R).
        order: the samples in the order in which they start communities.
        size: samples of a community.

    Examples:
        >>> grown(torch.tensor([[2], [3], [0], [1]]), [1, 0, 2, 3], 2)
        tensor([1, 3, 0, 2])
    """
    near = neighbours.tolist()
    used = [False] * len(order)
    row: list[int] = []
    free = iter(order)
    while len(row) < len(order):
        community = [next(sample for sample in free if not used[sample])]
        used[community[0]] = True
        for member in community:  # which grows meanwhile
            for other in near[member]:
                if len(community) < size and other >= 0 and not used[other]:
                    used[other] = True
                    community.append(other)
        while len(community) < size and len(row) + len(community) < len(order):
            filler = next(sample for sample in free if not used[sample])
            used[filler] = True
            community.append(filler)
        row += community
    return torch.tensor(row)
