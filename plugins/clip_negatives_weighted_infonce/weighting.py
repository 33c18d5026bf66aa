"""Remove unreliable incorrect pairs and weigh the others up as the similarity of their images falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.similarity import reliable_tables

SIMILARITIES = ("cluster", "sample")


class WeightedInfoNCE:
    """Weigh an incorrect pair ``w_ij = exp(-beta r_ij)``, and 0 where the exchange of texts is not reliable.

    r_ij is the *frozen* similarity of the images i and j, so the weight falls as they grow alike: the opposite sign of
    hard-negative methods, which raise the weight with the *live* similarity. With the image clusters a and the text clusters
    c, the pair is removed unless ``image_reliable[a_i, a_j] and text_reliable[c_i, c_j]``.

    From the paper (Tagami et al., WSCG 2024, abstract): clusters of images and of texts, the similarity between clusters
    decides which incorrect pairs are made, the negative effect grows as the similarity of the images falls. Our choice, as
    the paper's formula is not public: the exponential (it never reaches 0 by itself, and for sample similarity it is an inner
    product of features, which a fused loss gets for free), the removal of unreliable pairs in the batch too, `normalize`,
    and every default value. Sign: lowers and removes what is similar, by the frozen similarity.

    Args:
        beta: how fast the weight falls, at least 0; 0 only removes. Two images of opposite features differ from two equal
            ones by the factor ``exp(2 beta)``.
        similarity: "cluster" takes r_ij as the cosine between the centroids of the clusters of i and j, "sample" as the
            cosine between the features of i and j themselves.
        text_beta: the same fall for the similarity of the texts, so that ``w_ij = exp(-beta r_ij - text_beta t_ij)``; 0, as
            in the paper, leaves it out.
        image_threshold: cosine at which two image clusters are too similar to exchange texts, -1 .. 1.
        image_quantile: the same as the share of all pairs that stays under the threshold, 0 .. 1; a given threshold goes
            first; none with no threshold removes pairs of one cluster only.
        text_threshold: as `image_threshold`, for text clusters.
        text_quantile: as `image_quantile`, for text clusters.
        remove: whether unreliable pairs are removed; false only weighs.
        normalize: whether the weights of the pairs that are kept are scaled to mean 1 in each row and column of the batch.

    Raises:
        InputError: a value is out of its range, or features are asked for that the clusters do not hold.
    """

    def __init__(
        self,
        beta: float = 1.0,
        similarity: str = "cluster",
        text_beta: float = 0.0,
        image_threshold: float | None = None,
        image_quantile: float | None = 0.95,
        text_threshold: float | None = None,
        text_quantile: float | None = 0.95,
        remove: bool = True,
        normalize: bool = True,
    ) -> None:
        if beta < 0 or text_beta < 0 or not math.isfinite(beta + text_beta):
            raise InputError(f"Expected beta and text_beta of at least 0, got {beta} and {text_beta}.")
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
        self.remove = remove
        self.normalize = normalize

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return the tables (and, for sample similarity, the factors) of the data set."""
        image = torch.zeros_like(clusters.image_similarity)
        text = torch.zeros_like(clusters.text_similarity)
        factors = None
        if self.similarity == "cluster":
            image = image - self.beta * clusters.image_similarity
            text = text - self.text_beta * clusters.text_similarity
        else:
            factors = self._factors(clusters)
        if self.remove:
            image_reliable, text_reliable = reliable_tables(clusters, **self.gate)
            image = image.masked_fill(~image_reliable, -torch.inf)
            text = text.masked_fill(~text_reliable, -torch.inf)
        return LossTerms(
            image_labels=clusters.image.labels,
            image_table=image,
            text_labels=clusters.text.labels,
            text_table=text,
            factors=factors,
            normalize=self.normalize,
        )

    def _factors(self, clusters: Clusters) -> Tensor:
        """Return vectors u with ``<u_i, u_j> = beta r_ij + text_beta t_ij``, float32, shape (N, D)."""
        parts = []
        for beta, features, name in (
            (self.beta, clusters.image_features, "image"),
            (self.text_beta, clusters.text_features, "text"),
        ):
            if beta == 0:
                continue
            if features is None:
                raise InputError(
                    f"Expected clusters with {name} features for similarity=sample, got clusters without. "
                    "Prepare them with features kept, or use similarity=cluster."
                )
            parts.append(math.sqrt(beta) * features.float())
        if not parts:
            raise InputError("Expected beta or text_beta over 0 for similarity=sample, got 0 for both. Use similarity=cluster.")
        return torch.cat(parts, dim=1)
