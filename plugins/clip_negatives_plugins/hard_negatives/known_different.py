"""Hardness by the live similarity, limited to pairs with a low frozen similarity."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce, mean_one
from clip_negatives.frozen_similarity import frozen_log_distances
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clusters

Similarity = Literal["image", "text", "either"]


class KnownDifferent:
    """Raise the weight of negatives that the model finds similar; lower it for similar frozen features.

    ``log w_ij = hardness sg(z_ij) + gamma log(1 - max(r_ij, 0))``, where r is the frozen similarity of the samples and sg
    stops the gradient. With `normalize`, the weights of each anchor have mean 1.

    * Source: hardness as in Robinson et al. (2021, arXiv:2010.04592), but without a gradient through the weight. The factor
      with gamma is that of `weight`, a reading of Tagami et al. (WSCG 2024).
    * Our choice: the combination of both.
    * Sign: raises similar pairs by the live similarity, lowers similar pairs by the frozen similarity.

    Args:
        hardness: weight of the live part, at least 0; 0 removes it.
        gamma: exponent of the frozen part, at least 0; 0 removes it.
        by: frozen similarity of the "image", of the "text", or "either": the larger of both.
        normalize: scale the weights of each anchor to mean 1.

    Raises:
        InputError: the clusters were prepared without features.
    """

    def __init__(self, hardness: float = 0.25, gamma: float = 1.0, by: Similarity = "either", normalize: bool = True) -> None:
        check_number("hardness", hardness, at_least=0)
        check_number("gamma", gamma, at_least=0)
        check_choice("by", by, get_args(Similarity))
        self.hardness, self.gamma, self.by, self.normalize = hardness, gamma, by, normalize

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with the frozen features."""
        return _KnownDifferentLoss(clusters, self)


class _KnownDifferentLoss(AnchorLoss):
    def __init__(self, clusters: Clusters, options: KnownDifferent) -> None:
        super().__init__()
        names = ("image", "text") if options.by == "either" else (options.by,)
        self.features = [clusters.features_of(name, f"by={options.by}") for name in names]
        self.options, self.n_samples = options, clusters.n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        log_weights = self.options.hardness * anchors.logits.detach()
        if self.options.gamma:
            log_distances = frozen_log_distances(self.features, anchors.samples, anchors.cosines)
            log_weights.add_(log_distances, alpha=self.options.gamma)  # equal features: weight 0
        if self.options.normalize:
            log_weights = mean_one(log_weights, anchors.negatives)
        return info_nce(anchors, log_weights=log_weights)
