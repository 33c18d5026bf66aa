"""Soft targets: several positives for each anchor, by the frozen similarity."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce
from clip_negatives.frozen_similarity import frozen_cosines
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clusters

Side = Literal["image", "text"]


class Cwcl:
    """Treat every candidate as a positive in proportion to its frozen similarity.

    ``T_ij = w_ij / sum_k w_ik`` with ``w_ij = (1 + r_ij) / 2``, where r is the frozen cosine within one modality. These targets
    are for the anchors of this modality; anchors of the other modality have their own pair as the only positive.

    * Source: CWCL (Srinivasa et al., 2023, arXiv:2309.14580), with features of the tower that stays frozen in training.
    * Our choice: the clustered features.
    * Sign: attracts similar pairs, by the frozen similarity.

    Args:
        by: modality of the features, "image" or "text".

    Raises:
        InputError: the clusters were prepared without features.
    """

    def __init__(self, by: Side = "image") -> None:
        check_choice("by", by, get_args(Side))
        self.by = by

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with the frozen features."""
        return _CwclLoss(clusters, self.by)


class XClr:
    """Use the softmax of the frozen similarity as target.

    ``T_i = softmax_j(r_ij / temperature)``, where r is the frozen cosine of the samples, for the anchors of both modalities.

    * Source: X-CLR (Sobal et al., 2024, arXiv:2407.18134), with r from captions.
    * Our choice: the temperature 0.1, and r from images as an option.
    * Sign: attracts similar pairs, by the frozen similarity.

    Args:
        temperature: above 0; near 0 the target is the positive and its duplicates.
        by: modality of the features, "text" or "image".

    Raises:
        InputError: the clusters were prepared without features.
    """

    def __init__(self, temperature: float = 0.1, by: Side = "text") -> None:
        check_number("temperature", temperature, above=0)
        check_choice("by", by, get_args(Side))
        self.temperature, self.by = temperature, by

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with the frozen features."""
        return _XClrLoss(clusters, self.by, self.temperature)


class _FrozenFeatures(AnchorLoss):
    def __init__(self, clusters: Clusters, by: str) -> None:
        super().__init__()
        self.features, self.by, self.n_samples = clusters.features_of(by, f"by={by}"), by, clusters.n_samples


class _CwclLoss(_FrozenFeatures):
    def forward(self, anchors: Anchors) -> Tensor:
        if anchors.modality != self.by:
            return info_nce(anchors)
        near = (1 + frozen_cosines(self.features, anchors.samples, anchors.cosines)).clamp(min=0) / 2
        return info_nce(anchors, targets=near / near.sum(1, keepdim=True))


class _XClrLoss(_FrozenFeatures):
    def __init__(self, clusters: Clusters, by: str, temperature: float) -> None:
        super().__init__(clusters, by)
        self.temperature = temperature

    def forward(self, anchors: Anchors) -> Tensor:
        near = frozen_cosines(self.features, anchors.samples, anchors.cosines)
        return info_nce(anchors, targets=(near / self.temperature).softmax(1))
