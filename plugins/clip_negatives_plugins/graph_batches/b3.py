"""B3: batches of small communities of similar samples, without the most similar."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation, require_clusters, shuffle_rows
from clip_negatives_plugins.graph_batches.neighbours import Sides, frozen_vectors, ranked_neighbours


class B3(PlannedSampler):
    """Batches of communities of similar samples. Nearest neighbours are skipped, because they may be false negatives.

    In a graph, sample i is linked to its neighbours of rank ``skip + 1 .. skip + window``. The graph is cut into communities,
    and each step consists of random communities. A community grows from a random unused sample: it takes the unused neighbours
    of its first member by rank, then of its second member, and so on, and at last any unused samples.

    * Source: B3 (Thirukovalluru et al., 2025, arXiv:2505.11293). B3 ranks neighbours by a teacher model and cuts the graph with
      METIS; its training code is not public.
    * Our choice: ranks by the frozen features; communities that grow greedily, anew each epoch; all default values.
    * Sign: collects similar samples, by the frozen similarity.

    Time: N^2 D operations once, and a Python loop over N x window each epoch. Suits up to about 1e6 samples.

    Args:
        skip: number of nearest neighbours that are skipped, at least 0.
        window: number of neighbours to link, after the skipped neighbours, at least 1.
        community: samples in each community, at least 2.
        by: similarity of the "image", the "text", or "both", their mean.

    Raises:
        InputError: the clusters were prepared without features.
        DataError: the data have fewer samples than one step.
    """

    def __init__(
        self, context: SamplingContext, skip: int = 8, window: int = 16, community: int = 8, by: Sides = "both"
    ) -> None:
        super().__init__(context, self._plan)
        for option, value, lowest in (("skip", skip, 0), ("window", window, 1), ("community", community, 2)):
            check_number(option, value, at_least=lowest)
        self.community = community
        self.neighbours = ranked_neighbours(frozen_vectors(require_clusters(context, "b3"), by), skip + 1, skip + window)

    def _plan(self, generator: torch.Generator) -> Tensor:
        order = permutation(self.context.n_samples, generator)
        samples = communities(self.neighbours, order.tolist(), self.community)
        whole = len(samples) // self.community * self.community
        rows = samples[:whole].view(-1, self.community)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        # If the step size is not a multiple of the community size, some communities are split over two steps.
        dealt = torch.cat([rows.flatten(), samples[whole:]])
        plan = dealt[: len(self) * self.step_size].view(len(self), self.step_size)
        shuffle_rows(plan, generator)
        return plan


class HardPairs(B3):
    """Batches in which each sample meets one of its nearest neighbours.

    `B3` with communities of two: half of a step are random samples, the other half are their hard negatives.

    * Source: HELIP (Wang et al., 2023, arXiv:2305.05208) mines pairs that are similar in both modalities. NegCLIP (Yuksekgonul
      et al., 2023, arXiv:2210.01936) adds similar images to the batch. Both add captions to the batch, as `hard_texts` and
      `swapped_words` do here.
    * Our choice: hard negatives are ordinary samples of the batch.
    * Sign: collects similar samples, by the frozen similarity.

    Args:
        skip: number of nearest neighbours that are skipped, at least 0.
        window: number of neighbours after these to choose from, at least 1.
        by: similarity of the "image", the "text", or "both", their mean.

    Raises:
        InputError: the clusters were prepared without features.
        DataError: the data have fewer samples than one step.
    """

    def __init__(self, context: SamplingContext, skip: int = 0, window: int = 16, by: Sides = "both") -> None:
        super().__init__(context, skip=skip, window=window, community=2, by=by)


def communities(neighbours: Tensor, order: list[int], size: int) -> Tensor:
    """Return all samples, grouped into communities of `size` consecutive samples, int64, shape (N,).

    Args:
        neighbours: nearest first, padded with -1, int64, shape (N, R).
        order: all samples; communities start from unused samples in this order.
        size: samples in each community.

    Examples:
        >>> communities(torch.tensor([[2], [3], [0], [1]]), [1, 0, 2, 3], 2)
        tensor([1, 3, 0, 2])
    """
    near = neighbours.tolist()
    used = [False] * len(order)
    samples: list[int] = []
    free = iter(order)
    while len(samples) < len(order):
        community = [next(sample for sample in free if not used[sample])]
        used[community[0]] = True
        for member in community:  # grows in the loop
            for other in near[member]:
                if len(community) < size and other >= 0 and not used[other]:
                    used[other] = True
                    community.append(other)
        while len(community) < size and len(samples) + len(community) < len(order):
            filler = next(sample for sample in free if not used[sample])
            used[filler] = True
            community.append(filler)
        samples += community
    return torch.tensor(samples)
