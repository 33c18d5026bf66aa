"""Hardness by a constant of the step: what the model thinks now raises a logit, but gets no gradient through it."""

from __future__ import annotations

from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, info_nce
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters


class Llave:
    """Add a multiple of the live cosine to the logits of the negatives, without a gradient.

    ``b_ij = alpha sg(s_ij)``, sg stopping the gradient. Source: LLaVE (Lan et al., 2025, arXiv:2503.04812, eq. 5), alpha 9 for
    negatives in the batch; EmbeddingGemma (2025, arXiv:2509.20354) weighs alike. The weights are not normalised. Sign: raises
    what is similar, by the live similarity.

    Args:
        alpha: at least 0.

    Raises:
        InputError: it is out of its range.
    """

    requires_clusters = False

    def __init__(self, alpha: float = 9.0) -> None:
        if not 0 <= alpha < float("inf"):
            raise InputError(f"Expected alpha of at least 0, got {alpha}.")
        self.alpha = alpha

    def __call__(self, clusters: Clusters | None) -> AnchorLoss:
        """Return the loss."""
        return _Raised(self.alpha)


class _Raised(AnchorLoss):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, anchors: Anchors) -> Tensor:
        return info_nce(anchors, log_weights=self.alpha * anchors.cosines.detach())
