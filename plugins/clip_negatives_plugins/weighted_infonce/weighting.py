"""The weighting `weighted_infonce`: higher weights for dissimilar incorrect pairs; unreliable pairs can be removed."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from clip_negatives.clustering.low_rank import low_rank_factors
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clusters, LossTerms, NearestClusters

Similarity = Literal["cluster", "sample"]


class WeightedInfoNCE:
    """Weight an incorrect pair by ``w_ij = exp(-beta r_ij - text_beta t_ij)``, and optionally remove unreliable pairs.

    r_ij is the *frozen* similarity of the images i and j, and t_ij that of their texts. The weight falls with the similarity.
    Hard-negative methods do the opposite: their weight rises with the *live* similarity.

    With image clusters a and text clusters c, a pair is reliable if ``image_reliable[a_i, a_j] and text_reliable[c_i, c_j]``,
    from the tables of `clip_negatives.clustering.reliability.ReliabilityGate`.

    * Source: the abstract of Tagami et al. (WSCG 2024). Images and texts are clustered. The similarity between clusters
      decides which incorrect pairs are made. The negative effect increases as the similarity of the images decreases.
    * Our choice: the exponential, because the formula is not public. The weight never becomes 0; with the similarity of
      samples, its logarithm is an inner product of features, which is cheap in a fused loss.
    * Our choice: the removal of unreliable pairs in the batch, `normalize`, and all default values. The defaults (similarity
      of images and texts, no removal) were the best on validation data.
    * The method ``paper`` (``text_beta=0,remove=true``) is closest to the abstract.
    * Sign: lowers similar pairs, and optionally removes them, by the frozen similarity.

    Args:
        beta: decrease of the log-weight per unit of image similarity, at least 0; 0 ignores the images. With beta, equal images
            have an ``exp(2 beta)`` times lower weight than opposite images.
        similarity: "cluster" uses the cosine between the centroids of the clusters; "sample" uses the cosine between the
            features of the samples, which takes longer and was not better.
        text_beta: the same as `beta`, for the similarity of the texts.
        image_threshold: two image clusters are too similar from this cosine on, -1 .. 1.
        image_quantile: the same threshold as a quantile of all pairs, 0 .. 1; 0.95 makes the most similar 5 % unreliable. Used
            if `image_threshold` is none. If both are none, the image clusters only have to differ.
        text_threshold: the same as `image_threshold`, for text clusters.
        text_quantile: the same as `image_quantile`, for text clusters.
        remove: remove unreliable pairs; false only weights them.
        normalize: scale the weights of the kept pairs to mean 1 in each row and column of the batch.
        rank: for "sample", number of principal directions of the features to keep, at least 1; none keeps all. The loss then
            takes as long as with an embedding longer by `rank`; N samples take ``4 N rank`` bytes.
        hardness: at least 0. The weight gets the factor ``exp(hardness z_ij)``, where z_ij is the logit in training (*live*).
            The weights then have mean 1.
        warmup: share of the training, 0 .. 1, in which the log-weights grow linearly from 0 to their full size. 0 has the full
            size from the beginning. Removed pairs are removed from the beginning.

    Raises:
        InputError: the clusters were prepared without features, for "sample".
    """

    def __init__(
        self,
        beta: float = 1.0,
        similarity: Similarity = "cluster",
        text_beta: float = 1.0,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
        remove: bool = False,
        normalize: bool = True,
        rank: int | None = 128,
        hardness: float = 0.0,
        warmup: float = 0.0,
    ) -> None:
        check_number("warmup", warmup, at_least=0, at_most=1)
        for option, value in (("beta", beta), ("text_beta", text_beta), ("hardness", hardness)):
            check_number(option, value, at_least=0)
        check_choice("similarity", similarity, get_args(Similarity))
        check_number("rank", rank, at_least=1)
        self.beta, self.text_beta, self.similarity = beta, text_beta, similarity
        self.gate = ReliabilityGate(image_threshold, image_quantile, text_threshold, text_quantile)
        self.remove, self.normalize, self.rank, self.hardness = remove, normalize, rank, hardness
        self.schedule = ((0.0, 0.0), (warmup, 1.0)) if warmup > 0 else ()

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return terms with tables between clusters, factors of samples, or both; tables of only 0 are left out."""
        by_cluster = self.similarity == "cluster"
        factors = None if by_cluster else self._factors(clusters)
        if not by_cluster and not self.remove:
            return LossTerms(factors=factors, normalize=self.normalize, hardness=self.hardness, schedule=self.schedule)
        image = _similarity(clusters.image_similarity, clusters.image_nearest)
        text = _similarity(clusters.text_similarity, clusters.text_nearest)
        image = -self.beta * image if by_cluster else torch.zeros_like(image)
        text = -self.text_beta * text if by_cluster else torch.zeros_like(text)
        if self.remove:
            image_reliable, text_reliable = self.gate.tables(clusters)
            image, text = image.masked_fill(~image_reliable, -torch.inf), text.masked_fill(~text_reliable, -torch.inf)
        return LossTerms(
            image_labels=clusters.image.labels,
            image_table=image,
            image_neighbours=clusters.neighbours[0],
            text_labels=clusters.text.labels,
            text_table=text,
            text_neighbours=clusters.neighbours[1],
            factors=factors,
            normalize=self.normalize,
            hardness=self.hardness,
            schedule=self.schedule,
        )

    def _factors(self, clusters: Clusters) -> Tensor | None:
        """Return vectors u with ``<u_i, u_j> = beta r_ij + text_beta t_ij``, of rank `rank`, or None if both betas are 0."""
        purpose = "similarity=sample (similarity=cluster needs none)"
        betas = (("image", self.beta), ("text", self.text_beta))
        parts = [(beta, clusters.features_of(name, purpose)) for name, beta in betas if beta > 0]
        return low_rank_factors(parts, self.rank) if parts else None


def _similarity(table: Tensor, nearest: NearestClusters | None) -> Tensor:
    """Return the table of similarities, or a sparse table: the nearest clusters, then one column for all others."""
    if nearest is None:
        return table
    return torch.cat([nearest.cosines, torch.full_like(nearest.cosines[:, :1], nearest.rest)], dim=1)
