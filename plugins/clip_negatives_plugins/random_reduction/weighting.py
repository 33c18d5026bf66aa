"""The weighting `random_reduction`: incorrect pairs are removed at random."""

from __future__ import annotations

import torch

from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import removed_share
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.sampling import epoch_generator


class RandomReduction:
    """Remove a share of the incorrect pairs at random; all other pairs have the same weight.

    This is a control experiment. The method of the paper both chooses pairs and lowers their number; only the gain over this
    control is due to the choice of pairs.

    * Source: Tagami et al. compare with "randomly reducing" incorrect pairs (technical report, 2024-05-08). Their draw is not
      public.
    * Our choice: samples get random groups, and all pairs of two groups are removed or kept together. The loss then looks up
      pairs of groups like pairs of clusters.
    * Sign: removes pairs at random; uses no similarity.

    Args:
        share: share of the incorrect pairs to remove, 0 .. 1. None takes the share that ``weighted_infonce:remove=true``
            removes with the four options below, counted over all pairs of the data.
        image_threshold: two image clusters are too similar from this cosine on, -1 .. 1.
        image_quantile: the same threshold as a quantile of all pairs, 0 .. 1; used if `image_threshold` is none.
        text_threshold: the same as `image_threshold`, for text clusters.
        text_quantile: the same as `image_quantile`, for text clusters.
        n_groups: number of random groups, at least 2.
        seed: seed of the draw.
    """

    def __init__(
        self,
        share: float | None = None,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
        n_groups: int = 1024,
        seed: int = 0,
    ) -> None:
        check_number("share", share, at_least=0, at_most=1)
        check_number("n_groups", n_groups, at_least=2)
        self.gate = ReliabilityGate(image_threshold, image_quantile, text_threshold, text_quantile)
        self.share, self.n_groups, self.seed = share, n_groups, seed

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return a table between the random groups."""
        share = removed_share(clusters, *self.gate.tables(clusters)) if self.share is None else self.share
        generator = epoch_generator(self.seed, 0)
        labels = torch.randint(self.n_groups, (clusters.n_samples,), generator=generator)
        draw = torch.rand(self.n_groups, self.n_groups, generator=generator).triu()
        removed = (draw + draw.triu(1).T) < share
        return LossTerms(image_labels=labels, image_table=torch.zeros(removed.shape).masked_fill_(removed, -torch.inf))
