"""The weighting `blend`: part of each target goes to the samples that are similar in both modalities."""

from __future__ import annotations

from typing import Literal, get_args

from clip_negatives.clustering.low_rank import low_rank_factors
from clip_negatives.host.option_checks import check_choice, check_number
from clip_negatives.interfaces import Clusters, LossTerms

Sides = Literal["both", "image", "text"]


class Blend:
    """Share a part of each target among similar samples of the batch.

    ``T = (1 - mass) I + mass q`` with ``q_i = softmax_j(r_ij / similarity_temperature)`` over the other samples j of the batch,
    for the anchors of both modalities. r is the frozen cosine, with `by=both` the mean of the cosines of images and of texts.
    The features are centred first: their mean is subtracted, and they are scaled to unit norm.

    * Source: ours. Soft targets from frozen similarities are those of X-CLR (Sobal et al., 2024, arXiv:2407.18134) and CWCL
      (Srinivasa et al., 2023, arXiv:2309.14580). `blend` differs in three ways: it uses both modalities, it centres the
      features, and it leaves the fixed part ``1 - mass`` to the own pair.
    * Our choice: all default values, made on validation data.
    * Sign: attracts similar pairs, by the frozen similarity.

    The weighting needs a fixed temperature, such as ``blend@0.1``.

    Args:
        mass: part of the target that goes to other samples, 0 .. 1; 0 is plain InfoNCE.
        similarity_temperature: above 0; near 0, the part goes to the most similar sample only.
        centre: subtract the mean of the features of all samples.
        by: modality of the features, "both", "image" or "text".
        rank: number of principal directions of the features to keep, at least 1; none keeps all. N samples take ``4 N rank``
            bytes, and the time of the loss grows as with an embedding longer by `rank`.
        learned_temperature: allow training with a learned temperature.

    Raises:
        InputError: the clusters were prepared without features.
    """

    def __init__(
        self,
        mass: float = 0.2,
        similarity_temperature: float = 0.1,
        centre: bool = True,
        by: Sides = "both",
        rank: int | None = None,
        learned_temperature: bool = False,
    ) -> None:
        check_number("mass", mass, at_least=0, at_most=1)
        check_number("similarity_temperature", similarity_temperature, above=0)
        check_choice("by", by, get_args(Sides))
        check_number("rank", rank, at_least=1)
        self.mass, self.similarity_temperature, self.centre, self.by, self.rank = mass, similarity_temperature, centre, by, rank
        self.requires_fixed_temperature = not learned_temperature

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return terms with the targets as factors of the samples."""
        names = ("image", "text") if self.by == "both" else (self.by,)
        beta = 1 / (len(names) * self.similarity_temperature)
        parts = [(beta, clusters.features_of(name, f"blend:by={self.by}")) for name in names]
        return LossTerms(target_factors=low_rank_factors(parts, self.rank, centre=self.centre), target_mass=self.mass)
