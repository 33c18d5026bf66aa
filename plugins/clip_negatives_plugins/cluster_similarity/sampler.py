"""The sampler `cluster_similarity`: batches in which every image has reliable incorrect pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.block_sampling import Block, BlockSampler
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.errors import InputError
from clip_negatives.interfaces import IncorrectPairs, SamplingContext
from clip_negatives.sampling import require_clusters, shuffle_rows
from clip_negatives_plugins.cluster_similarity.pairs import draw_pairs
from clip_negatives_plugins.cluster_similarity.reliable import ReliableExchanges
from clip_negatives_plugins.cluster_similarity.side import Side

SWAPS = 64
"""Random swaps with other steps that are tried for a sample without a reliable partner in its step."""


class ClusterSimilarity(BlockSampler):
    """Batches that hold every cluster in proportion, and a reliable incorrect pair for every image.

    The pair (image i, text j) is *reliable* if the image clusters of i and j differ and their similarity is below a threshold.
    The text clusters must meet the same condition. In explicit pairs, the sampler never exchanges captions between clusters
    more similar than this. For batches, samples are sorted by cluster and dealt out to the steps, anew in each epoch. Large
    data are first cut into random blocks. Each block is sorted and dealt out when its first step is due.

    * Source: the abstract of Tagami et al. (WSCG 2024). Images and texts are clustered separately; the similarity between
      clusters decides which incorrect pairs are made.
    * Our choice: a pair must be reliable by its image clusters and by its text clusters; thresholds are quantiles by default;
      batches are stratified, so that a sample meets as few similar samples as the data allow.
    * Sign: spreads similar samples over the steps, by the frozen similarity.

    Args:
        image_threshold: two image clusters are too similar from this cosine on, -1 .. 1.
        image_quantile: the same threshold as a quantile of all pairs, 0 .. 1; 0.95 makes the most similar 5 % unreliable. Used
            if `image_threshold` is none. If both are none, the image clusters only have to differ.
        text_threshold: the same as `image_threshold`, for text clusters.
        text_quantile: the same as `image_quantile`, for text clusters.

    Raises:
        InputError: there are no clusters, or a sample has no reliable partner in the data.
        DataError: the data have fewer samples than one step.
    """

    def __init__(
        self,
        context: SamplingContext,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
    ) -> None:
        super().__init__(context, self._plan)
        clusters = require_clusters(context, "cluster_similarity")
        gate = ReliabilityGate(image_threshold, image_quantile, text_threshold, text_quantile)
        image_neighbours, text_neighbours = clusters.neighbours
        self.reliable = ReliableExchanges(
            Side.of(clusters.image.labels, gate.image_table(clusters), image_neighbours),
            Side.of(clusters.text.labels, gate.text_table(clusters), text_neighbours),
        )
        self._check_all_have_partners(self.reliable.without_partner(), "the whole data set")

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw up to `per_image` different reliable texts for each image, uniformly.

        An image with fewer reliable texts gets all of them.

        Raises:
            InputError: `per_image` is less than 1.
        """
        return self.incorrect_pairs_of(torch.arange(self.context.n_samples), per_image, generator)

    def incorrect_pairs_of(self, images: Tensor, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw pairs as `incorrect_pairs` does, only for `images` (int64, shape (M,))."""
        return draw_pairs(self.reliable, images, per_image, generator)

    def _plan(self, generator: torch.Generator, block: Block) -> Tensor:
        """Deal the sorted samples out to the steps, and repair steps in which a sample has no reliable partner."""
        shuffled = block.samples(generator)
        # Choose the spare samples (left out of the epoch) before sorting: else they would always be from the last clusters.
        used, spare = shuffled.split([n_used := block.n_steps * self.step_size, len(shuffled) - n_used])
        rounds = self._sorted_by_cluster(used).view(self.step_size, block.n_steps)
        # Each round gives one sample to every step, in its own random order.
        shuffle_rows(rounds, generator)
        # Each rank takes a range of columns; without this shuffle, a rank would see few clusters.
        plan = rounds.T
        shuffle_rows(plan, generator)
        return self._repair(plan, spare, generator)

    def _sorted_by_cluster(self, samples: Tensor) -> Tensor:
        """Return the samples, stably sorted by image and text cluster."""
        image, text = self.reliable.image, self.reliable.text
        index = samples.long()
        return samples[(image.labels[index] * text.n_clusters + text.labels[index]).argsort(stable=True)]

    def _repair(self, plan: Tensor, spare: Tensor, generator: torch.Generator) -> Tensor:
        """Exchange samples that have no reliable partner in their step for samples of other steps, or for spare samples."""
        places = plan.new_empty(plan.numel() + len(spare))
        places[: plan.numel()].view_as(plan).copy_(plan)
        places[plan.numel() :] = spare
        pending = list(range(len(plan)))
        while pending:
            step = pending.pop()
            while (isolated := self._isolated(places, step)).numel():
                changed_step = self._swap(places, step, int(isolated[0]), generator)
                if changed_step is None:
                    self._check_all_have_partners(isolated, f"a step of {self.step_size} samples")
                else:
                    pending.append(changed_step)  # it may now have a sample without a partner
        return places[: plan.numel()].view_as(plan)

    def _isolated(self, places: Tensor, step: int) -> Tensor:
        """Return the samples that have no reliable partner in their step; empty for the spare samples after the last step."""
        members = places[step * self.step_size : (step + 1) * self.step_size].long()
        if len(members) < self.step_size:
            return members[:0]
        return self.reliable.without_partner_among(members, members)

    def _swap(self, places: Tensor, step: int, sample: int, generator: torch.Generator) -> int | None:
        """Swap `sample` into another step so that fewer samples lack a partner; return the other step, or None on failure."""
        place = int((places == sample).nonzero())
        for other_place in torch.randint(len(places), (SWAPS,), generator=generator).tolist():
            other_step: int = other_place // self.step_size
            if other_step == step:
                continue
            before = self._isolated(places, step).numel() + self._isolated(places, other_step).numel()
            places[[place, other_place]] = places[[other_place, place]]
            if self._isolated(places, step).numel() + self._isolated(places, other_step).numel() < before:
                return other_step
            places[[place, other_place]] = places[[other_place, place]]
        return None

    def _check_all_have_partners(self, isolated: Tensor, scope: str) -> None:
        if isolated.numel():
            raise InputError(
                f"{isolated.numel()} samples have no reliable incorrect pair within {scope} (first: sample {int(isolated[0])})."
                " Raise image_quantile or text_quantile (or the thresholds), or use more clusters or a larger batch."
            )
