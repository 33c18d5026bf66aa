"""Drop incorrect pairs at random."""

from __future__ import annotations

import torch

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import reliable_tables, removed_share


class RandomReduction:
    """Drop a share of the incorrect pairs at random and weigh the others 1.

    Tagami et al. compare with "randomly reducing" incorrect pairs (technical report, 2024-05-08), because their method both
    chooses pairs and lowers their number; only what it gains over this control is owed to the choice. How they drew is not
    known. Our choice: samples get random group labels, and every two groups are dropped or kept together, so that the loss
    looks pairs up as it does for clusters; pairs of one sample are dropped independently of what the pictures show. Sign:
    removes at random, by no similarity.

    Args:
        share: share of the incorrect pairs to drop, 0 .. 1; None takes the share that
            ``weighted_infonce:remove=true`` drops under the four options below, counted exactly over all pairs of the data.
        image_threshold: see `clip_negatives.similarity.reliable_tables`.
        image_quantile: the same.
        text_threshold: the same.
        text_quantile: the same.
        n_groups: number of random groups.
        seed: seed of the draw.

    Raises:
        InputError: `share` is not within 0 .. 1, or `n_groups` is less than 2.
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
        if share is not None and not 0.0 <= share <= 1.0:
            raise InputError(f"Expected a share within 0 .. 1, got {share}.")
        if n_groups < 2:
            raise InputError(f"Expected at least 2 groups, got {n_groups}.")
        self.share = share
        self.gate = {
            "image_threshold": image_threshold,
            "image_quantile": image_quantile,
            "text_threshold": text_threshold,
            "text_quantile": text_quantile,
        }
        self.n_groups = n_groups
        self.seed = seed

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return terms whose tables drop the share of pairs."""
        share = removed_share(clusters, *reliable_tables(clusters, **self.gate)) if self.share is None else self.share
        generator = epoch_generator(self.seed, 0)
        labels = torch.randint(self.n_groups, (clusters.n_samples,), generator=generator)
        draw = torch.rand(self.n_groups, self.n_groups, generator=generator).triu()
        dropped = (draw + draw.triu(1).T) < share
        table = torch.zeros(dropped.shape).masked_fill_(dropped, -torch.inf)
        return LossTerms(image_labels=labels, image_table=table)
