"""The weighting `siglip`: a binary decision for each pair, correct or incorrect."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors
from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.losses.functional import pair_log_weights, require_terms


class SigLip:
    """Apply the sigmoid loss to each pair, with the weights and the groups of another weighting.

    ``loss_i = - sum_j w_ij log sigmoid(m_ij z_ij)``, where m is 1 for the positive and the pairs of its group, else -1; ``w_ij
    = exp(b_ij)`` for incorrect pairs, else 1. With ``of=uniform`` the loss is `open_clip.SigLipLoss`. The model needs a logit
    bias: train with open_clip's ``--siglip``.

    * Source: SigLIP (Zhai et al., 2023, arXiv:2303.15343).
    * Our choice: the weights; they are not normalised, because pairs do not compete in a softmax.
    * Sign: the sign of the other weighting.

    Args:
        of: name of the other weighting, without options.

    Raises:
        UnknownNameError: there is no such weighting.
        InputError: the other weighting has more than log-weights and groups.
    """

    requires_logit_bias = True

    def __init__(self, of: str = "uniform") -> None:
        self.of = of
        self.weighting = registry.create("loss_weighting", of)

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with the terms of the other weighting."""
        terms = require_terms(self.weighting(clusters), self.of)
        plain = terms.margin is None and terms.hardness == 0 and terms.positive_rate is None and terms.positive_weight == 1
        if not plain or terms.targeted or terms.scheduled:
            raise InputError(
                f"siglip cannot use the margin, hardness, positive_rate, positive_weight, targets or schedule of of={self.of}. "
                "Use of=weighted_infonce."
            )
        return _SigLipLoss(terms)


class _SigLipLoss(AnchorLoss):
    def __init__(self, terms: LossTerms) -> None:
        super().__init__()
        self.terms, self.n_samples = terms, terms.n_samples

    def forward(self, anchors: Anchors) -> Tensor:
        rows, columns = anchors.samples.index, anchors.samples.candidates
        positive, weights = ~anchors.negatives, torch.ones_like(anchors.cosines)
        if self.terms.weighted:
            weights = self._weights(anchors, rows, columns).masked_fill(positive, 1.0)
        if self.terms.groups is not None:
            groups = self.terms.groups
            same_group = groups[rows.to(groups.device)][:, None] == groups[columns.to(groups.device)]
            mates = same_group.to(positive.device) & ~positive
            weights = weights.masked_fill(mates, float(self.terms.attract))
            if self.terms.attract:
                positive = positive | mates
        signed = anchors.logits.where(positive, -anchors.logits)
        return -(weights * F.logsigmoid(signed)).sum(1)

    def _weights(self, anchors: Anchors, rows: Tensor, columns: Tensor) -> Tensor:
        """Return exp(b) of the step, shape (B, G)."""
        terms = self.terms
        device = next(part.device for part in (terms.image_labels, terms.text_labels, terms.factors) if part is not None)
        i, j = rows.to(device).repeat_interleave(len(columns)), columns.to(device).repeat(len(rows))
        pair = (i, j) if anchors.modality == "image" else (j, i)
        return pair_log_weights(terms, *pair).exp().view(len(rows), len(columns)).to(anchors.cosines)
