"""Weightings that remove negatives more similar than the positive, plus or minus a margin."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce, removed_above
from clip_negatives.errors import InputError
from clip_negatives.frozen_similarity import frozen_cosines
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clusters, LossTerms

Guide = Literal["image", "text", "both", "cross"]
MarginKind = Literal["relative", "absolute"]


class Margin:
    """Remove negatives that the model finds more similar than the positive by a margin.

    ``b_ij = -inf`` if ``s_ij > s_ii + margin``, and also if the texts of i and j are equal.

    * Source: the mask of Qwen3-Embedding (2025, arXiv:2506.05176), with its margin 0.1. Its denominator also contains
      query-query and document-document pairs, which a CLIP loss does not have.
    * Sign: removes similar pairs, by the live similarity.

    Args:
        margin: difference of cosines, -2 .. 2.
        same_text: also remove pairs with equal texts, if the clusters contain the texts.

    Raises:
        InputError: `same_text` is set and the labels come with a stream, which has no texts.
    """

    def __init__(self, margin: float = 0.1, same_text: bool = True) -> None:
        check_number("margin", margin, at_least=-2, at_most=2)
        self.margin, self.same_text = margin, same_text

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return terms with the margin."""
        if self.same_text and clusters.image.counts is not None:
            raise InputError(
                "The margin weighting removes equal texts, but labels that come with a stream contain no texts. "
                "Use margin:same_text=false, or pass the clusters folder."
            )
        groups = clusters.texts if self.same_text else None
        return LossTerms(margin=self.margin, groups=groups, attract=False)


class Gist:
    """Remove negatives whose frozen similarity is about as high as that of the positive.

    With g the frozen similarity, ``b_ij = -inf`` if ``g_ij > g_ii - margin`` (absolute) or ``g_ij > g_ii - margin * |g_ii|``
    (relative). With guide "image" or "text", g_ii is 1.

    * Source: GISTEmbed (Solatorio, 2024, arXiv:2402.16829, margin 0), in which one embedding model guides query and document.
      The relative margin of 5 % is from NV-Retriever (Moreira et al., 2024, arXiv:2407.15831).
    * Our choice: the clustered features are the guide.
    * Sign: removes similar pairs, by the frozen similarity of samples.

    Args:
        guide: features that give g: "image", "text", "both" (each removes pairs), or "cross" (images with texts; needs one
            model for both).
        margin: at least 0: a difference of cosines (absolute), or a share of g_ii (relative).
        kind: "relative" or "absolute".

    Raises:
        InputError: the clusters were prepared without features, or with features of two sizes for "cross".
    """

    def __init__(self, guide: Guide = "text", margin: float = 0.05, kind: MarginKind = "relative") -> None:
        check_choice("guide", guide, get_args(Guide))
        check_choice("kind", kind, get_args(MarginKind))
        check_number("margin", margin, at_least=0)
        self.guide, self.margin, self.kind = guide, margin, kind

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with the features of the guide."""
        names = (self.guide,) if self.guide in ("image", "text") else ("image", "text")
        features = {name: clusters.features_of(name, f"guide={self.guide}") for name in names}
        sizes = [part.shape[1] for part in features.values()]
        if self.guide == "cross" and len(set(sizes)) > 1:
            raise InputError(
                f"guide=cross compares image features with text features, but their sizes differ: {sizes[0]} and {sizes[1]}. "
                "Make the clusters with one open_clip model as image encoder and as text encoder."
            )
        return _GistLoss(features, self, clusters.n_samples)


class _GistLoss(AnchorLoss):
    def __init__(self, features: dict[str, Tensor], options: Gist, n_samples: int) -> None:
        super().__init__()
        self.features, self.options, self.n_samples = features, options, n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        parts = (self._removed(guide, anchors.samples.offset) for guide in self._guides(anchors))
        return info_nce(anchors, log_weights=functools.reduce(torch.add, parts))

    def _removed(self, guide: Tensor, offset: int) -> Tensor:
        """Return -inf where a similarity is above the limit of its anchor, 0 elsewhere."""
        own = guide.diagonal(offset)[:, None]
        limit = own - self.options.margin * (own.abs() if self.options.kind == "relative" else 1.0)
        return removed_above(guide, limit)

    def _guides(self, anchors: Anchors) -> list[Tensor]:
        """Return the similarities g of the step, each of shape (B, G)."""
        if self.options.guide != "cross":
            return [frozen_cosines(features, anchors.samples, anchors.cosines) for features in self.features.values()]
        candidates = self.features["text" if anchors.modality == "image" else "image"]
        return [frozen_cosines(self.features[anchors.modality], anchors.samples, anchors.cosines, candidates=candidates)]
