"""The loss of each anchor from the sums over its pairs: a few operations on vectors, the same for every backend.

With z the logit, N the incorrect pairs of anchor i that are kept, P its positives (itself and its mates) and w the weights::

    n = sum over N of w exp(z)                                      # negatives
    n = |N| n / sum over N of w                                     # if weights are normalised
    n = max((n - t |N| p) / (1 - t), |N| exp(bias - scale))         # if debiased; p is the mean over P of exp(z)
    loss = log(n + alpha sum over P of exp(z)) - mean over P of z   # alpha is 1 but in decoupled losses

Hardness multiplies w by ``exp(hardness z)`` and normalises.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.kernels import dense, op, weight_sums
from clip_negatives.kernels.pairs import (
    IMPORTANCE,
    KEPT,
    MATE_LOGITS,
    MATES,
    N_MATES,
    NEGATIVES,
    Pairs,
    PairSums,
    Side,
    joined,
    sum_dtype,
)
from clip_negatives.kernels.ring import pair_sums as ring_sums


@dataclass(frozen=True, slots=True)
class Objective:
    """Say what is made of the sums.

    Attributes:
        normalize: whether the weights of an anchor are scaled to mean 1.
        positive_rate: share t of the incorrect pairs that is taken to be correct, a number or one for each anchor; None does
            not debias.
        grouped: whether samples have mates.
        margin: difference of cosines over which a pair is no negative; None keeps every pair.
        hardness: beta, at least 0.
        positive_weight: alpha, how much the positives count beside the negatives.
    """

    normalize: bool = False
    positive_rate: Tensor | float | None = None
    grouped: bool = False
    margin: float | None = None
    hardness: float = 0.0
    positive_weight: float = 1.0

    @property
    def plain(self) -> bool:
        """Return whether the loss is InfoNCE with whatever log-weights there are, as they are."""
        treated = self.normalize or self.grouped or self.hardness > 0 or self.positive_weight != 1
        return not treated and self.positive_rate is None and self.margin is None

    @property
    def counts(self) -> bool:
        """Return whether the number of kept pairs is needed."""
        return self.normalize or self.positive_rate is not None


class Further(NamedTuple):
    """Hold texts beside those of the samples.

    Attributes:
        features: shape (E, D).
        own_ids: a number for the text of each row, shape (B,); None where no text is looked for among the further ones.
        ids: the same of these texts, shape (E,).
    """

    features: Tensor
    own_ids: Tensor | None
    ids: Tensor | None

    def pairs(self, limits: Tensor | None, objective: Objective) -> Pairs:
        """Return what to sum of the rows and these texts.

        One text is one group: the pairs of a group are no negatives, and their sums as mates are not looked at. An offset
        beyond the last column leaves every row without a positive.
        """
        return Pairs(
            Side(groups=self.own_ids, limits=limits),
            Side(groups=self.ids),
            offset=len(self.features),
            columns_too=False,
            hardness=objective.hardness,
            importance=objective.normalize,
            count=objective.counts,
        )


def anchor_losses(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    pairs: Pairs,
    *,
    objective: Objective,
    backend: str,
    chunk_size: int | None = None,
    ring: bool = False,
    further: Further | None = None,
) -> list[Tensor]:
    """Return the losses of the rows x as anchors and, where columns are anchors too, those of the columns y.

    Args:
        x: shape (B, D).
        y: shape (G, D).
        scale: of the logits.
        bias: of the logits.
        pairs: weights and positives; what to sum and limits are filled in here.
        objective: what to make of the sums.
        backend: "torch", "chunked" or "triton".
        chunk_size: rows at a time; None chooses.
        ring: whether the samples of all processes are contrasted; x and y are then this process's.
        further: more columns, unweighted negatives of the rows and no anchors; not with the ring.
    """
    dtype = sum_dtype(x, y)
    own = y if len(y) == len(x) else y[pairs.offset : pairs.offset + len(x)]
    # Outside the sums, in full precision: the one logit of a row whose gradient does not average out.
    positive = scale.to(dtype).flatten() * (x.to(dtype) * own.to(dtype)).sum(1)
    lowest = -scale.to(dtype).flatten()
    if bias is not None:
        positive, lowest = positive + bias.to(dtype).flatten(), lowest + bias.to(dtype).flatten()
    pairs = dataclasses.replace(pairs, hardness=objective.hardness)
    if objective.margin is not None:
        limits = (positive + scale.to(dtype).flatten() * objective.margin).detach()
        pairs = dataclasses.replace(pairs, rows=pairs.rows._replace(limits=limits))
        if pairs.columns_too:
            pairs = dataclasses.replace(pairs, columns=pairs.columns._replace(limits=limits))
    from_histogram = objective.counts and not ring and weight_sums.applies(pairs, len(x), len(y))
    if not from_histogram:
        pairs = dataclasses.replace(pairs, importance=objective.normalize, count=objective.counts)
    if ring:
        sums = ring_sums(x, y, scale, bias, pairs, backend="chunked" if backend == "torch" else backend, chunk_size=chunk_size)
    else:
        sums = _sums(x, y, scale, bias, pairs, backend, chunk_size)
    if from_histogram:
        sums = weight_sums.add(sums, pairs, len(y))
    if further is not None:
        more = _sums(x, further.features, scale, bias, further.pairs(pairs.rows.limits, objective), backend, chunk_size).rows
        sums = sums._replace(rows=joined(sums.rows, more))
    anchors = sums if pairs.columns_too else (sums.rows,)
    return [_loss(side, positive, lowest, objective) for side in anchors]


def _sums(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, backend: str, chunk_size: int | None
) -> PairSums:
    if backend == "torch":
        return dense.pair_sums(x, y, scale, bias, pairs)
    return op.pair_sums(x, y, scale, bias, pairs, backend=backend, chunk_size=chunk_size)


def _loss(sums: Tensor, positive: Tensor, lowest: Tensor, objective: Objective) -> Tensor:
    """Return the loss of each anchor, shape (n,).

    Args:
        sums: shape (6, n).
        positive: logit of each anchor's own pair, shape (n,).
        lowest: the lowest logit there can be, a scalar.
        objective: what to make of them.
    """
    negatives, kept = sums[NEGATIVES], sums[KEPT].detach()
    n_mates = sums[N_MATES].detach() if objective.grouped else torch.zeros_like(kept)
    if objective.normalize:
        # Where nothing is kept both are -inf and their difference is not a number.
        negatives = negatives - (sums[IMPORTANCE] - kept.log()).masked_fill(kept == 0, 0.0)
    positives, mean = positive, positive
    if objective.grouped:
        positives = torch.logaddexp(positive, sums[MATES])
        mean = (positive + sums[MATE_LOGITS]) / (1 + n_mates)
    if objective.positive_rate is not None:
        negatives = _debiased(negatives, positives - (1 + n_mates).log(), kept, lowest, objective.positive_rate)
    # Negatives over positives: nothing cancels where the loss is small, and -inf, no negative, is a loss of 0.
    odds = negatives - positives
    if objective.positive_weight == 0:  # decoupled: nothing is left to be told from where no negative is
        return (odds + (positives - mean)).masked_fill(odds == -torch.inf, 0.0)
    alpha = torch.full_like(odds, math.log(objective.positive_weight))
    return torch.logaddexp(odds, alpha) + (positives - mean)


def _debiased(negatives: Tensor, positive: Tensor, kept: Tensor, lowest: Tensor, rate: Tensor | float) -> Tensor:
    """Return the estimate of Chuang et al. (2020, arXiv:2007.00224, eq. 8), all in logarithms."""
    if isinstance(rate, Tensor):
        rate = rate.to(negatives)
    else:  # filled on the device: a number would be copied there in every step
        rate = torch.full((), rate, dtype=negatives.dtype, device=negatives.device)
    empty = kept == 0
    floor = kept.log() + lowest
    # The branch that is not taken must not hand back gradients that are not numbers.
    negatives = negatives.masked_fill(empty, 0.0)
    expected = kept.clamp(min=1).log() + rate.log() + positive  # positives that hide among the negatives
    share = (expected - negatives).exp()
    above = (share < 1) & ~empty
    estimate = negatives + torch.log1p(-share.where(above, torch.zeros_like(share))) - torch.log1p(-rate)
    return estimate.where(above & (estimate > floor), floor)
