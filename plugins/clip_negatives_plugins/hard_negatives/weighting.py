"""Weightings for hard and debiased negatives, by the options of `LossTerms`."""

from __future__ import annotations

import torch

from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters, LossTerms


class Dcl:
    """Debias: subtract the expected share of positives from the negatives.

    With S the sum of ``exp(z_ij)`` over the M negatives of anchor i, S becomes ``max((S - t M exp(z_ii)) / (1 - t), M exp(bias
    - scale))``.

    * Source: Chuang et al., 2020, arXiv:2007.00224, t = 0.1, with the floor ``M exp(-1 / tau)``. The paper contrasts views of
      one modality; here images are contrasted with texts, in both directions.
    * Sign: lowers all negatives equally; uses no similarity.

    Args:
        positive_rate: t, the probability that a negative is actually a positive, at least 0, below 1.
    """

    requires_clusters = False

    def __init__(self, positive_rate: float = 0.1) -> None:
        check_number("positive_rate", positive_rate, at_least=0, below=1)
        self.positive_rate = positive_rate

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return terms with the rate."""
        return LossTerms(positive_rate=torch.tensor(self.positive_rate))


class Hcl:
    """Raise the weight of negatives that the model finds similar, and debias.

    The M negatives of anchor i get the weights ``w_ij = M exp(beta z_ij) / sum_k exp(beta z_ik)``, which have mean 1. The
    weighted sum is debiased as in `Dcl`.

    * Source: Robinson et al., 2021, arXiv:2010.04592, beta 0.5 to 2, t = 0.1. As in their code, w has a gradient.
    * Sign: raises similar pairs, by the live similarity.

    Args:
        hardness: beta, at least 0.
        positive_rate: t, at least 0, below 1.
    """

    requires_clusters = False

    def __init__(self, hardness: float = 0.5, positive_rate: float = 0.1) -> None:
        check_number("hardness", hardness, at_least=0)
        check_number("positive_rate", positive_rate, at_least=0, below=1)
        self.hardness, self.positive_rate = hardness, positive_rate

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return terms with hardness and rate."""
        return LossTerms(hardness=self.hardness, positive_rate=torch.tensor(self.positive_rate))


class HnNce:
    """Raise the weight of negatives that the model finds similar.

    ``loss_i = -log( exp(z_ii) / (alpha exp(z_ii) + sum_j w_ij exp(z_ij)) )`` with the weights of `Hcl`.

    * Source: HN-NCE of Radenovic et al., 2023, arXiv:2301.02280. Its training code is not public.
    * Our choice: the default values, and one beta for both directions.
    * Sign: raises similar pairs, by the live similarity.

    Args:
        hardness: beta, at least 0.
        positive_weight: alpha, at least 0.
    """

    requires_clusters = False

    def __init__(self, hardness: float = 0.25, positive_weight: float = 1.0) -> None:
        check_number("hardness", hardness, at_least=0)
        check_number("positive_weight", positive_weight, at_least=0)
        self.hardness, self.positive_weight = hardness, positive_weight

    def __call__(self, clusters: Clusters | None) -> LossTerms:
        """Return terms with hardness and the weight of the positive."""
        return LossTerms(hardness=self.hardness, positive_weight=self.positive_weight)


class DhnNce(HnNce):
    """`hn_nce` without the positive in the denominator.

    With alpha = 0, the loss is decoupled as in Yeh et al., 2021, arXiv:2110.06848.

    * Source: DHN-NCE of MedCLIP-SAM (Koleilat et al., 2024, arXiv:2403.20253), by its formula. Its public code differs: it
      masks pairs by multiplying logits with 0, so that masked pairs count exp(0) = 1.
    * Our choice: one beta for both directions, and a loss of 0 for a row without negatives.
    * Sign: raises similar pairs, by the live similarity.

    Args:
        hardness: beta, at least 0.
    """

    def __init__(self, hardness: float = 0.15) -> None:
        super().__init__(hardness, positive_weight=0.0)
