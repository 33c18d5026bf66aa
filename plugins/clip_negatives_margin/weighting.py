"""Leave out what is more similar than the positive, plus or minus a margin."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, frozen_cosines, info_nce
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, LossTerms

GUIDES = ("image", "text", "both", "cross")
MARGINS = ("relative", "absolute")


class Margin:
    """Drop a negative that the model itself finds more similar than the positive by a margin.

    ``b_ij = -inf`` where ``s_ij > s_ii + margin``, and where the texts of i and j are equal: the mask of Qwen3-Embedding
    (2025, arXiv:2506.05176), its margin 0.1. That model's denominator also holds query-query and document-document pairs; a
    CLIP loss has none, so they are left out. Sign: removes what is similar, by the live similarity.

    Args:
        margin: difference of cosines, -2 .. 2.
        same_text: also drop pairs of equal texts, where the clusters know the texts.

    Raises:
        InputError: the margin is out of its range.
    """

    def __init__(self, margin: float = 0.1, same_text: bool = True) -> None:
        if not -2 <= margin <= 2:
            raise InputError(f"Expected a margin of cosines within -2 .. 2, got {margin}.")
        self.margin, self.same_text = margin, same_text

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return terms with the margin."""
        if self.same_text and clusters.image.counts is not None:
            raise InputError(
                "Expected clusters that know the texts for margin, got labels that come with a stream. "
                "Say margin:same_text=false, or name the clusters folder."
            )
        groups = clusters.texts if self.same_text else None
        return LossTerms(margin=self.margin, groups=groups, attract=False)


class Gist:
    """Drop a negative that a frozen guide finds as similar as the positive, but for a margin.

    With g the guide's similarity, ``b_ij = -inf`` where ``g_ij > g_ii - margin`` (absolute) or
    ``g_ij > g_ii - margin * |g_ii|`` (relative). Source: GISTEmbed (Solatorio, 2024, arXiv:2402.16829, margin 0); the relative
    margin of 5 % is that of NV-Retriever (Moreira et al., 2024, arXiv:2407.15831). There the guide is one embedding model for
    query and document. Here it is the features that were clustered: of the images or of the texts, where g_ii = 1; of both
    ("both" drops what either drops); or, where one model encoded both, image against text ("cross"). Sign: removes what is
    similar, by the frozen similarity of samples.

    Args:
        guide: "image", "text", "both" or "cross".
        margin: at least 0; a cosine, or a share of g_ii.
        kind: "relative" or "absolute".

    Raises:
        InputError: a value is none of these, or the clusters have no such features.
    """

    def __init__(self, guide: str = "text", margin: float = 0.05, kind: str = "relative") -> None:
        if guide not in GUIDES:
            raise InputError(f"Expected guide to be one of {', '.join(GUIDES)}, got {guide!r}.")
        if kind not in MARGINS:
            raise InputError(f"Expected kind to be one of {', '.join(MARGINS)}, got {kind!r}.")
        if not 0 <= margin < float("inf"):
            raise InputError(f"Expected a margin of at least 0, got {margin}.")
        self.guide, self.margin, self.kind = guide, margin, kind

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with the features of the guide."""
        modalities = {"both": ("image", "text"), "cross": ("image", "text")}.get(self.guide, (self.guide,))
        features = {name: clusters.features_of(name, f"guide={self.guide}") for name in modalities}
        sizes = {part.shape[1] for part in features.values()}
        if self.guide == "cross" and len(sizes) > 1:
            raise InputError(
                f"Expected image and text features of one size for guide=cross, got {sorted(sizes)}. Prepare with one model "
                "for both: --image-encoder and --text-encoder open_clip:MODEL/CHECKPOINT."
            )
        return _Guided(features, self.guide == "cross", self.margin, self.kind == "relative", clusters.n_samples)


class _Guided(AnchorLoss):
    def __init__(self, features: dict[str, Tensor], cross: bool, margin: float, relative: bool, n_samples: int) -> None:
        super().__init__()
        self.features, self.cross, self.margin, self.relative, self.n_samples = features, cross, margin, relative, n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        log_weights = torch.zeros_like(anchors.cosines)
        for guide in self._guides(anchors):
            own = guide.diagonal(anchors.where.offset)[:, None]
            limit = own - self.margin * (own.abs() if self.relative else 1.0)
            log_weights = log_weights.masked_fill(guide > limit, -torch.inf)
        return info_nce(anchors, log_weights=log_weights)

    def _guides(self, anchors: Anchors) -> list[Tensor]:
        """Return the similarities g of the step, each of shape (B, G)."""
        if not self.cross:
            return [frozen_cosines(features, anchors.where, anchors.cosines) for features in self.features.values()]
        others = self.features["text" if anchors.modality == "image" else "image"]
        return [frozen_cosines(self.features[anchors.modality], anchors.where, anchors.cosines, candidates=others)]
