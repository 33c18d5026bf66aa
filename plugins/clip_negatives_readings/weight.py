"""No pair removed, each weighed by how dissimilar it is."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, frozen_cosines, frozen_distances, info_nce, mean_one
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters

SIMILARITIES = {"image": ("image",), "text": ("text",), "either": ("image", "text")}
FORMS = ("clipped", "half")


class Weight:
    """Let a negative count more the less similar the samples are, each by its own features.

    ``w_ij = (1 - max(r_ij, 0)) ** gamma`` (form "clipped") or ``((1 - r_ij) / 2) ** gamma`` (form "half"), ``b_ij = log
    w_ij``, r the frozen cosine of the samples themselves, not of their clusters. A reading of the abstract (WSCG 2024):
    "increase the negative effect as the similarity between images was lower"; the formula is not public, so form, gamma and
    the text similarity are our choice. Sign: lowers what is similar, by the frozen similarity.

    Args:
        gamma: at least 0.
        by: "image", as in the abstract, "text", or "either", the larger of both.
        form: "clipped" or "half".
        normalize: scale the weights of an anchor to mean 1; else they also lower how many negatives there seem to be.

    Raises:
        InputError: a value is none of these, or the clusters have no such features.
    """

    def __init__(self, gamma: float = 1.0, by: str = "image", form: str = "clipped", normalize: bool = True) -> None:
        if not 0 <= gamma < float("inf"):
            raise InputError(f"Expected gamma of at least 0, got {gamma}.")
        if by not in SIMILARITIES:
            raise InputError(f"Expected by to be one of {', '.join(SIMILARITIES)}, got {by!r}.")
        if form not in FORMS:
            raise InputError(f"Expected form to be one of {', '.join(FORMS)}, got {form!r}.")
        self.gamma, self.by, self.form, self.normalize = gamma, by, form, normalize

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with the frozen features."""
        features = [clusters.features_of(name, f"by={self.by}") for name in SIMILARITIES[self.by]]
        return _Weighed(features, self, clusters.n_samples)


class _Weighed(AnchorLoss):
    def __init__(self, features: list[Tensor], how: Weight, n_samples: int) -> None:
        super().__init__()
        self.features, self.how, self.n_samples = features, how, n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        alike = torch.stack([frozen_cosines(part, anchors.where, anchors.cosines) for part in self.features]).amax(0)
        half = ((1 - alike) / 2).clamp(0.0, 1.0).masked_fill(frozen_distances(alike) == 0, 0.0)
        weights = frozen_distances(alike) if self.how.form == "clipped" else half
        log_weights = self.how.gamma * weights.log() if self.how.gamma else torch.zeros_like(weights)
        if self.how.normalize:
            log_weights = mean_one(log_weights, anchors.negatives)
        return info_nce(anchors, log_weights=log_weights)
