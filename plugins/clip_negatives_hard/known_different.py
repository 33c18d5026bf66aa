"""Hard by what the model thinks now, but known to be different by frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, frozen_cosines, frozen_distances, info_nce, mean_one
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters

SIMILARITIES = {"image": ("image",), "text": ("text",), "either": ("image", "text")}


class KnownDifferent:
    """Weigh negatives up that the model confuses, and down what frozen features say is alike.

    ``log w_ij = hardness sg(z_ij) + gamma log(1 - max(r_ij, 0))``, then scaled to mean 1 over the negatives of an anchor, r
    being the frozen similarity of the samples' images, texts, or the larger of both. The combination is ours; hardness is
    that of Robinson et al. (2021, arXiv:2010.04592) but without a gradient through the weight, the second factor that of the
    ``weight`` reading of Tagami et al. (WSCG 2024). Sign: raises what is similar by the live similarity, lowers it by the
    frozen one.

    Args:
        hardness: beta, at least 0; 0 leaves the frozen part alone.
        gamma: at least 0; 0 leaves the live part alone.
        by: "image", "text" or "either".
        normalize: scale the weights to mean 1.

    Raises:
        InputError: a value is none of these, or the clusters have no such features.
    """

    def __init__(self, hardness: float = 0.25, gamma: float = 1.0, by: str = "either", normalize: bool = True) -> None:
        if not (0 <= hardness < float("inf") and 0 <= gamma < float("inf")):
            raise InputError(f"Expected hardness and gamma of at least 0, got {hardness} and {gamma}.")
        if by not in SIMILARITIES:
            raise InputError(f"Expected by to be one of {', '.join(SIMILARITIES)}, got {by!r}.")
        self.hardness, self.gamma, self.by, self.normalize = hardness, gamma, by, normalize

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with the frozen features."""
        features = [clusters.features_of(name, f"by={self.by}") for name in SIMILARITIES[self.by]]
        return _Known(features, self.hardness, self.gamma, self.normalize, clusters.n_samples)


class _Known(AnchorLoss):
    def __init__(self, features: list[Tensor], hardness: float, gamma: float, normalize: bool, n_samples: int) -> None:
        super().__init__()
        self.features, self.hardness, self.gamma, self.normalize = features, hardness, gamma, normalize
        self.n_samples = n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        alike = torch.stack([frozen_cosines(part, anchors.where, anchors.cosines) for part in self.features]).amax(0)
        log_weights = self.hardness * anchors.logits.detach()
        if self.gamma:
            log_weights = log_weights + self.gamma * frozen_distances(alike).log()  # equal features make the weight 0
        if self.normalize:
            log_weights = mean_one(log_weights, anchors.negatives)
        return info_nce(anchors, log_weights=log_weights)
