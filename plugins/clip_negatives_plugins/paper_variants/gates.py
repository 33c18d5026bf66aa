"""The weightings `gate` and `gate2`: unreliable pairs are removed, all other pairs have the same weight."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.interfaces import Clusters, LossTerms


class Gate:
    """Keep a negative only if the image clusters differ and their similarity is below a threshold.

    ``b_ij = 0`` if ``a_i != a_j`` and ``R[a_i, a_j] < threshold``, else ``-inf``, where a are the image clusters and R the
    cosines of their centroids.

    * Source: a reading of the authors' technical report (IPSJ, 2024-05-08). Texts are exchanged between pairs "whose
      image-feature clusters differ" and whose similarity is low.
    * Our choice: the threshold, which is not public.
    * Sign: removes similar pairs, by the frozen similarity.

    Args:
        image_threshold: two image clusters are too similar from this cosine on, -1 .. 1.
        image_quantile: the same threshold as a quantile of all pairs, 0 .. 1; 0.95 makes the most similar 5 % unreliable. Used
            if `image_threshold` is none. If both are none, the image clusters only have to differ.
    """

    def __init__(self, image_threshold: float | None = None, image_quantile: float | None = 0.95) -> None:
        self.gate = ReliabilityGate(image_threshold, image_quantile)

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return the table of the image clusters."""
        table = _log_weights(self.gate.image_table(clusters))
        return LossTerms(image_labels=clusters.image.labels, image_table=table, image_neighbours=clusters.neighbours[0])


class Gate2:
    """Keep a negative only if its image clusters and its text clusters are dissimilar.

    `Gate` for image and text clusters. ``weighted_infonce:remove=true`` removes the same pairs, and weights the rest.

    * Source: a reading of the abstract (Tagami et al., WSCG 2024), in which the similarity between the clusters "of the images
      and texts" generates the incorrect pairs.
    * Our choice: the thresholds.
    * Sign: removes similar pairs, by the frozen similarity.

    Args:
        image_threshold: two image clusters are too similar from this cosine on, -1 .. 1.
        image_quantile: the same threshold as a quantile of all pairs, 0 .. 1; 0.95 makes the most similar 5 % unreliable. Used
            if `image_threshold` is none. If both are none, the image clusters only have to differ.
        text_threshold: the same as `image_threshold`, for text clusters.
        text_quantile: the same as `image_quantile`, for text clusters.
    """

    def __init__(
        self,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
    ) -> None:
        self.gate = ReliabilityGate(image_threshold, image_quantile, text_threshold, text_quantile)

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return the tables of image and text clusters."""
        return LossTerms(
            image_labels=clusters.image.labels,
            image_table=_log_weights(self.gate.image_table(clusters)),
            image_neighbours=clusters.neighbours[0],
            text_labels=clusters.text.labels,
            text_table=_log_weights(self.gate.text_table(clusters)),
            text_neighbours=clusters.neighbours[1],
        )


def _log_weights(reliable: Tensor) -> Tensor:
    return torch.zeros(reliable.shape).masked_fill_(~reliable, -torch.inf)
