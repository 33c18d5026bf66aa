"""Targets from the frozen similarity of the samples."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, frozen_cosines, info_nce
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters


class Cwcl:
    """Take every candidate for as much of a positive as its frozen features are near.

    ``T_ij = w_ij / sum_k w_ik`` with ``w_ij = (1 + r_ij) / 2``, r the frozen cosine within one modality, for the anchors of
    that modality; the anchors of the other have their own pair alone. Source: Srinivasa et al., 2023, arXiv:2309.14580, where
    the features are those of the tower that stays frozen in training; here they are those that were clustered. Sign: attracts
    what is similar, by the frozen similarity.

    Args:
        by: modality of the features, "image" or "text".

    Raises:
        InputError: it is neither, or the clusters have no such features.
    """

    def __init__(self, by: str = "image") -> None:
        self.by = _modality(by)

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with the frozen features."""
        return _Weighed(clusters.features_of(self.by, f"by={self.by}"), self.by, clusters.n_samples)


class XClr:
    """Take the softmax of the frozen similarity as the target.

    ``T_i = softmax_j(r_ij / temperature)``, r the cosine between the frozen features of the samples, for the anchors of both
    modalities. Source: Sobal et al., 2024, arXiv:2407.18134, which takes r from captions; the temperature 0.1 is our choice, as
    is taking images for r. Sign: attracts what is similar, by the frozen similarity.

    Args:
        temperature: over 0; towards 0 the target becomes the own pair and its duplicates.
        by: modality of the features, "text" or "image".

    Raises:
        InputError: a value is out of its range, or the clusters have no such features.
    """

    def __init__(self, temperature: float = 0.1, by: str = "text") -> None:
        if not 0 < temperature < float("inf"):
            raise InputError(f"Expected a temperature over 0, got {temperature}.")
        self.temperature, self.by = temperature, _modality(by)

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with the frozen features."""
        return _Softmax(clusters.features_of(self.by, f"by={self.by}"), self.temperature, clusters.n_samples)


class _Weighed(AnchorLoss):
    def __init__(self, features: Tensor, by: Literal["image", "text"], n_samples: int) -> None:
        super().__init__()
        self.features, self.by, self.n_samples = features, by, n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        if anchors.modality != self.by:
            return info_nce(anchors)
        near = (1 + frozen_cosines(self.features, anchors.where, anchors.cosines)).clamp(min=0) / 2
        return info_nce(anchors, targets=near / near.sum(1, keepdim=True))


class _Softmax(AnchorLoss):
    def __init__(self, features: Tensor, temperature: float, n_samples: int) -> None:
        super().__init__()
        self.features, self.temperature, self.n_samples = features, temperature, n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        near = frozen_cosines(self.features, anchors.where, anchors.cosines)
        return info_nce(anchors, targets=(near / self.temperature).softmax(1))


def _modality(by: str) -> Literal["image", "text"]:
    if by == "image":
        return "image"
    if by == "text":
        return "text"
    raise InputError(f"Expected by to be image or text, got {by!r}.")
