"""LLaVE: hardness by the live similarity, without a gradient."""

from __future__ import annotations

from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters


class Llave:
    """Add a multiple of the live cosine to the logits of the negatives, without a gradient.

    ``b_ij = alpha sg(s_ij)``, where sg stops the gradient. The weights are not normalised.

    * Source: LLaVE (Lan et al., 2025, arXiv:2503.04812, eq. 5), alpha 9 for negatives in the batch. EmbeddingGemma (2025,
      arXiv:2509.20354) uses similar weights.
    * Sign: raises similar pairs, by the live similarity.

    Args:
        alpha: strength, at least 0.
    """

    requires_clusters = False

    def __init__(self, alpha: float = 9.0) -> None:
        check_number("alpha", alpha, at_least=0)
        self.alpha = alpha

    def __call__(self, clusters: Clusters | None) -> AnchorLoss:
        """Return the loss."""
        return _LlaveLoss(self.alpha)


class _LlaveLoss(AnchorLoss):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, anchors: Anchors) -> Tensor:
        return info_nce(anchors, log_weights=self.alpha * anchors.cosines.detach())
