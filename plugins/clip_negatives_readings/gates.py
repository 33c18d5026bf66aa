"""Pairs removed by the similarity between clusters, the others as they are."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.similarity import reliable_table, reliable_tables


class Gate:
    """Keep a negative only where the image clusters differ and their similarity is under a threshold.

    ``b_ij = 0`` where ``a_i != a_j`` and ``R[a_i, a_j] < threshold``, else ``-inf``, a the image clusters and R the cosine
    between centroids. A reading of the authors' technical report (IPSJ, 2024-05-08): texts are exchanged between pairs "whose
    image-feature clusters differ" and whose similarity is low. The threshold is not public; its value is our choice. Sign:
    removes what is similar, by the frozen similarity.

    Args:
        image_threshold: cosine at which two image clusters are too similar, -1 .. 1; it goes before the quantile.
        image_quantile: the same as the share of all pairs that stays under the threshold, 0 .. 1; None removes pairs of one
            cluster only.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(self, image_threshold: float | None = None, image_quantile: float | None = 0.95) -> None:
        self.threshold = image_threshold
        self.quantile = image_quantile if image_threshold is None else None

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return the table of the image clusters."""
        similarity = clusters.image_nearest or clusters.image_similarity
        kept = reliable_table(clusters.image, similarity, threshold=self.threshold, quantile=self.quantile)
        return LossTerms(image_labels=clusters.image.labels, image_table=removed(kept), image_listed=clusters.listed[0])


class Gate2:
    """Keep a negative only where both its image clusters and its text clusters are dissimilar.

    `Gate`, and the same for the text clusters: a reading of the abstract (WSCG 2024), where the similarity between the
    clusters "of the images and texts" generates the incorrect pairs. The default ``weighted_infonce`` is this with weights.
    Sign: removes what is similar, by the frozen similarity.

    Args:
        image_threshold: see `Gate`.
        image_quantile: see `Gate`.
        text_threshold: the same for text clusters.
        text_quantile: the same for text clusters.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
    ) -> None:
        self.gate = {
            "image_threshold": image_threshold,
            "image_quantile": image_quantile,
            "text_threshold": text_threshold,
            "text_quantile": text_quantile,
        }

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return the tables of both."""
        image, text = reliable_tables(clusters, **self.gate)
        terms = LossTerms(clusters.image.labels, removed(image), clusters.text.labels, removed(text))
        return dataclasses.replace(terms, image_listed=clusters.listed[0], text_listed=clusters.listed[1])


def removed(kept: Tensor) -> Tensor:
    """Return log-weights that are 0 where `kept` says so, else -inf."""
    return torch.zeros(kept.shape).masked_fill_(~kept, -torch.inf)
