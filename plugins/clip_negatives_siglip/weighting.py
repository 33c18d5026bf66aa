"""Every pair judged by itself: correct or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives import registry
from clip_negatives.anchors import AnchorLoss, Anchors
from clip_negatives.errors import InputError
from clip_negatives.functional import before_training, pair_log_weights
from clip_negatives.interfaces import Clusters, LossTerms


class SigLip:
    """Judge each pair by a sigmoid, as SigLIP does, with the weights and the groups of another weighting.

    ``loss_i = - sum_j w_ij log sigmoid(m_ij z_ij)``, m = 1 for i's own pair and those of its group, else -1; ``w_ij =
    exp(b_ij)`` for incorrect pairs, 1 for the others. Source: Zhai et al., 2023, arXiv:2303.15343; with ``of=uniform`` it is
    `open_clip.SigLipLoss`. Log-weights are taken as they are: nothing is normalised, as no pair competes with another. It
    needs a model with a logit bias: train with open_clip's ``--siglip``. Sign: that of the weighting it takes.

    Args:
        of: name of a weighting without options, whose log-weights and groups are taken.

    Raises:
        UnknownNameError: there is no such weighting.
        InputError: it decides at each step, or asks for more than weights and groups.
    """

    requires_logit_bias = True

    def __init__(self, of: str = "uniform") -> None:
        self.of = of
        self.weighting = registry.create("loss_weighting", of)

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with the terms."""
        terms = before_training(self.weighting(clusters), self.of)
        if terms.margin is not None or terms.hardness > 0 or terms.positive_rate is not None or terms.positive_weight != 1:
            raise InputError(f"Expected a weighting of log-weights and groups for of=, got {self.of!r}, which asks for more.")
        return _Sigmoid(terms)


class _Sigmoid(AnchorLoss):
    def __init__(self, terms: LossTerms) -> None:
        super().__init__()
        self.terms, self.n_samples = terms, terms.n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        rows, columns = anchors.where.index, anchors.where.candidates
        positive, weights = ~anchors.negatives, torch.ones_like(anchors.cosines)
        if self.terms.weighted:
            weights = self._weights(anchors, rows, columns).masked_fill(positive, 1.0)
        if self.terms.groups is not None:
            groups = self.terms.groups
            mates = groups[rows.to(groups.device)][:, None] == groups[columns.to(groups.device)]
            mates = mates.to(positive.device) & ~positive
            positive, weights = (
                (positive | mates, weights.masked_fill(mates, 1.0))
                if self.terms.attract
                else (positive, weights.masked_fill(mates, 0.0))
            )
        signed = anchors.logits.where(positive, -anchors.logits)
        return -(weights * F.logsigmoid(signed)).sum(1)

    def _weights(self, anchors: Anchors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return exp(b) of the step, shape (B, G)."""
        some = next(part for part in (self.terms.image_labels, self.terms.text_labels, self.terms.factors) if part is not None)
        i, j = rows.to(some.device).repeat_interleave(len(columns)), columns.to(some.device).repeat(len(rows))
        pair = (i, j) if anchors.modality == "image" else (j, i)
        return pair_log_weights(self.terms, *pair).exp().view(len(rows), len(columns)).to(anchors.cosines)
