"""The weighting `weight`: dissimilar pairs have a higher weight."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce, mean_one
from clip_negatives.frozen_similarity import frozen_cosines, frozen_distances
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clusters

Similarity = Literal["image", "text", "either"]
Form = Literal["clipped", "half"]


class Weight:
    """Weight a negative by the dissimilarity of its two samples.

    ``w_ij = (1 - max(r_ij, 0)) ** gamma`` (form "clipped") or ``((1 - r_ij) / 2) ** gamma`` (form "half"), ``b_ij = log
    w_ij``, where r is the frozen cosine of the samples themselves, not of their clusters.

    * Source: a reading of the abstract (Tagami et al., WSCG 2024): "increase the negative effect as the similarity between
      images was lower".
    * Our choice: form, gamma and the text similarity, because the formula is not public.
    * Sign: lowers similar pairs, by the frozen similarity.

    Args:
        gamma: exponent, at least 0.
        by: frozen similarity of the "image", as in the abstract, of the "text", or "either": the larger of both.
        form: "clipped" or "half".
        normalize: scale the weights of each anchor to mean 1; otherwise they also reduce the effective number of negatives.

    Raises:
        InputError: the clusters were prepared without features.
    """

    def __init__(self, gamma: float = 1.0, by: Similarity = "image", form: Form = "clipped", normalize: bool = True) -> None:
        check_number("gamma", gamma, at_least=0)
        check_choice("by", by, get_args(Similarity))
        check_choice("form", form, get_args(Form))
        self.gamma, self.by, self.form, self.normalize = gamma, by, form, normalize

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with the frozen features."""
        return _WeightLoss(clusters, self)


class _WeightLoss(AnchorLoss):
    def __init__(self, clusters: Clusters, options: Weight) -> None:
        super().__init__()
        names = ("image", "text") if options.by == "either" else (options.by,)
        self.features = [clusters.features_of(name, f"by={options.by}") for name in names]
        self.options, self.n_samples = options, clusters.n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        similarity = torch.stack([frozen_cosines(part, anchors.samples, anchors.cosines) for part in self.features]).amax(0)
        weights = frozen_distances(similarity)
        if self.options.form == "half":
            weights = ((1 - similarity) / 2).clamp(0.0, 1.0).masked_fill(weights == 0, 0.0)
        log_weights = self.options.gamma * weights.log() if self.options.gamma else torch.zeros_like(weights)
        if self.options.normalize:
            log_weights = mean_one(log_weights, anchors.negatives)
        return info_nce(anchors, log_weights=log_weights)
