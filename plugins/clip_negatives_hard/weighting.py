"""Weightings that the fused loss sums by itself: debiased, hard, decoupled."""

from __future__ import annotations

import torch

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, LossTerms


class Dcl:
    """Debias: take from the negatives what is expected to be positive among them.

    With S the sum of ``exp(z_ij)`` over the M negatives of anchor i, S becomes
    ``max((S - t M exp(z_ii)) / (1 - t), M exp(bias - scale))``. Source: Chuang et al., 2020, arXiv:2007.00224, t = 0.1 (their
    floor is ``M exp(-1 / tau)``). There views of one modality are contrasted, here images with texts, in both directions. Sign:
    lowers all negatives alike, by no similarity.

    Args:
        positive_rate: t, how probably a negative is in truth positive, 0 <= t < 1.

    Raises:
        InputError: it is out of its range.
    """

    requires_clusters = False

    def __init__(self, positive_rate: float = 0.1) -> None:
        self.positive_rate = _rate(positive_rate)

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return terms with the rate."""
        return LossTerms(positive_rate=torch.tensor(self.positive_rate))


class Hcl:
    """Weigh negatives up that the model finds similar, and debias.

    The negatives of anchor i get the weights ``w_ij = M exp(beta z_ij) / sum_k exp(beta z_ik)``, which have mean 1, and their
    sum is debiased as in `Dcl`. Source: Robinson et al., 2021, arXiv:2010.04592, beta 0.5 to 2, t = 0.1; their code computes w
    with a gradient, as this does. Sign: raises what is similar, by the live similarity.

    Args:
        hardness: beta, at least 0.
        positive_rate: t, 0 <= t < 1.

    Raises:
        InputError: a value is out of its range.
    """

    requires_clusters = False

    def __init__(self, hardness: float = 0.5, positive_rate: float = 0.1) -> None:
        self.hardness, self.positive_rate = _hardness(hardness), _rate(positive_rate)

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return terms with both."""
        return LossTerms(hardness=self.hardness, positive_rate=torch.tensor(self.positive_rate))


class HnNce:
    """Weigh negatives up that the model finds similar.

    ``loss_i = -log( exp(z_ii) / (alpha exp(z_ii) + sum_j w_ij exp(z_ij)) )`` with the weights of `Hcl`. Source: HN-NCE of
    Radenovic et al., 2023, arXiv:2301.02280. Its training code is not public; the default values are our choice. Sign: raises
    what is similar, by the live similarity.

    Args:
        hardness: beta, at least 0; one value for both directions.
        positive_weight: alpha, at least 0.

    Raises:
        InputError: a value is out of its range.
    """

    requires_clusters = False

    def __init__(self, hardness: float = 0.25, positive_weight: float = 1.0) -> None:
        if not 0 <= positive_weight < float("inf"):
            raise InputError(f"Expected positive_weight of at least 0, got {positive_weight}.")
        self.hardness, self.positive_weight = _hardness(hardness), positive_weight

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return terms with both."""
        return LossTerms(hardness=self.hardness, positive_weight=self.positive_weight)


class DhnNce(HnNce):
    """Take the positive out of the denominator of `HnNce`.

    alpha = 0: decoupled as by Yeh et al., 2021, arXiv:2110.06848. Source: DHN-NCE of MedCLIP-SAM (Koleilat et al., 2024,
    arXiv:2403.20253), which has one beta for each direction; here they are one. Its public code masks by multiplying logits, so
    that masked ones count exp(0) = 1; this follows the formula. A row without negatives contributes 0. Sign: raises what is
    similar, by the live similarity.

    Args:
        hardness: beta, at least 0.

    Raises:
        InputError: it is out of its range.
    """

    def __init__(self, hardness: float = 0.15) -> None:
        super().__init__(hardness, positive_weight=0.0)


def _rate(value: float) -> float:
    if not 0 <= value < 1:
        raise InputError(f"Expected positive_rate within 0 .. 1, without 1, got {value}.")
    return value


def _hardness(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise InputError(f"Expected hardness of at least 0, got {value}.")
    return value
