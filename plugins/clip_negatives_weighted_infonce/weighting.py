"""Remove unreliable incorrect pairs and weigh the others up as the similarity of their images falls."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, LossTerms, Nearest
from clip_negatives.similarity import reliable_tables
from clip_negatives_weighted_infonce.factors import low_rank_factors

SIMILARITIES = ("cluster", "sample")


class WeightedInfoNCE:
    """Weigh an incorrect pair ``w_ij = exp(-beta r_ij - text_beta t_ij)``, and, if asked, remove it where it is not reliable.

    r_ij is the *frozen* similarity of the images i and j, t_ij that of their texts, so the weight falls as they grow alike:
    the opposite sign of hard-negative methods, which raise the weight with the *live* similarity. With the image clusters a
    and the text clusters c, a pair is reliable where ``image_reliable[a_i, a_j] and text_reliable[c_i, c_j]``.

    From the paper (Tagami et al., WSCG 2024, abstract): clusters of images and of texts, the similarity between clusters
    decides which incorrect pairs are made, the negative effect grows as the similarity of the images falls. Our choice, as
    the paper's formula is not public: the exponential (it never reaches 0 by itself, and for sample similarity it is an inner
    product of features, which a fused loss gets for nearly free), the removal of unreliable pairs in the batch too,
    `normalize`, and every default value. The defaults are those that served best where nothing but validation data was
    looked at: the similarity of images and of texts, nothing removed. What is nearest to the abstract is
    ``text_beta=0,remove=true``, the method ``paper`` of a comparison. Sign: lowers (and removes) what is similar, by the frozen
    similarity.

    Args:
        beta: how fast the weight falls, at least 0; 0 only removes. Two images of opposite features differ from two equal
            ones by the factor ``exp(2 beta)``.
        similarity: "cluster" takes r_ij as the cosine between the centroids of the clusters of i and j, "sample" as the
            cosine between the features of i and j themselves, which served no better and costs more.
        text_beta: the same fall for the similarity of the texts.
        image_threshold: cosine at which two image clusters are too similar to exchange texts, -1 .. 1.
        image_quantile: the same as the share of all pairs that stays under the threshold, 0 .. 1; a given threshold goes
            first; none with no threshold removes pairs of one cluster only.
        text_threshold: as `image_threshold`, for text clusters.
        text_quantile: as `image_quantile`, for text clusters.
        remove: whether unreliable pairs are removed; false only weighs.
        normalize: whether the weights of the pairs that are kept are scaled to mean 1 in each row and column of the batch.
        rank: columns that are kept of the features for "sample", by their first principal directions; the loss costs as
            much more as the embedding were longer by them, and N samples take ``4 N rank`` bytes. None keeps all.
        hardness: at least 0; what the model itself confuses (the *live* similarity) counts as much more as this says, times
            ``exp(hardness z_ij)``, so that what is known to differ and looks alike counts most. Weights then have mean 1.

    Raises:
        InputError: a value is out of its range, or features are asked for that the clusters do not hold.
    """

    def __init__(
        self,
        beta: float = 1.0,
        similarity: str = "cluster",
        text_beta: float = 1.0,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
        remove: bool = False,
        normalize: bool = True,
        rank: int | None = 128,
        hardness: float = 0.0,
    ) -> None:
        if min(beta, text_beta, hardness) < 0 or not math.isfinite(beta + text_beta + hardness):
            raise InputError(f"Expected beta, text_beta and hardness of at least 0, got {beta}, {text_beta} and {hardness}.")
        if similarity not in SIMILARITIES:
            raise InputError(f"Expected similarity to be one of {', '.join(SIMILARITIES)}, got {similarity!r}.")
        self.beta, self.text_beta = beta, text_beta
        self.similarity = similarity
        self.gate = {
            "image_threshold": image_threshold,
            "image_quantile": image_quantile,
            "text_threshold": text_threshold,
            "text_quantile": text_quantile,
        }
        if rank is not None and rank < 1:
            raise InputError(f"Expected a rank of at least 1, got {rank}.")
        self.remove = remove
        self.normalize = normalize
        self.rank = rank
        self.hardness = hardness

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return the tables or the factors of the data set, or both; what would be all 0 is left out."""
        factors = self._factors(clusters) if self.similarity == "sample" else None
        terms = self._by_cluster(clusters)
        return dataclasses.replace(terms, factors=factors, normalize=self.normalize, hardness=self.hardness)

    def _by_cluster(self, clusters: Clusters) -> LossTerms:
        """Return the tables of similarity=cluster and of the removal."""
        weighs = self.similarity == "cluster"
        if not weighs and not self.remove:
            return LossTerms()
        image = _similarity(clusters.image_similarity, clusters.image_nearest)
        text = _similarity(clusters.text_similarity, clusters.text_nearest)
        image = -self.beta * image if weighs else torch.zeros_like(image)
        text = -self.text_beta * text if weighs else torch.zeros_like(text)
        if self.remove:
            image_reliable, text_reliable = reliable_tables(clusters, **self.gate)
            image, text = image.masked_fill(~image_reliable, -torch.inf), text.masked_fill(~text_reliable, -torch.inf)
        lists = clusters.listed
        tables: dict[str, Any] = {"image_table": image, "image_listed": lists[0], "text_table": text, "text_listed": lists[1]}
        return LossTerms(image_labels=clusters.image.labels, text_labels=clusters.text.labels, **tables)

    def _factors(self, clusters: Clusters) -> Tensor | None:
        """Return vectors u with ``<u_i, u_j> = beta r_ij + text_beta t_ij``, as near as the rank allows."""
        wanted = [(beta, name) for beta, name in ((self.beta, "image"), (self.text_beta, "text")) if beta > 0]
        who = "similarity=sample (similarity=cluster needs none)"
        parts = [(beta, clusters.features_of(name, who)) for beta, name in wanted]
        return low_rank_factors(parts, self.rank) if parts else None


def _similarity(table: Tensor, nearest: Nearest | None) -> Tensor:
    """Return the similarity between clusters, of very many to those that each lists and, in the last column, to the others."""
    if nearest is None:
        return table
    return torch.cat([nearest.cosines, torch.full_like(nearest.cosines[:, :1], nearest.rest)], dim=1)
