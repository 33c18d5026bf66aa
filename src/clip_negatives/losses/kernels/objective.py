"""The loss of each anchor, from the sums over its pairs: a few operations on vectors, the same for every backend.

With z the logit, N the kept incorrect pairs of anchor i, P its positives (itself and its group) and w the weights:

    n = sum over N of w exp(z)                                      # negatives
    n = |N| n / sum over N of w                                     # if weights are normalised
    n = max((n - t |N| p) / (1 - t), |N| exp(bias - scale))         # if debiased; p is the mean over P of exp(z)
    loss = log(n + alpha sum over P of exp(z)) - mean over P of z   # alpha: 1, in decoupled losses 0

With targets by similarity, ``mean over P of z`` is ``(1 - m) z_own + m mean over all other samples of z``, a weighted mean.
Hardness multiplies w by ``exp(hardness z)``, and the weights are normalised.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from clip_negatives.losses.kernels import dense, extras, op, weight_sums
from clip_negatives.losses.kernels.pairs import Extras, Inputs, Pairs
from clip_negatives.losses.kernels.ring import pair_sums as ring_sums
from clip_negatives.losses.kernels.sums import (
    IMPORTANCE,
    KEPT,
    MATE_LOGITS,
    MATES,
    N_MATES,
    NEGATIVES,
    TARGET_LOGITS,
    TARGET_NORM,
    PairSums,
)
from clip_negatives.terms import LossTerms


def anchor_losses(
    inputs: Inputs,
    pairs: Pairs,
    *,
    terms: LossTerms,
    backend: str,
    chunk_size: int | None = None,
    ring: bool = False,
    row_extras: Extras | None = None,
    column_extras: Extras | None = None,
) -> list[Tensor]:
    """Return the losses of the rows and, if columns are anchors too, of the columns.

    This function sets the limits and the sums to compute. With `ring`, the inputs are those of this process. `row_extras` are
    additional columns for the rows, and `column_extras` additional rows for the columns; `ring` does not support them.
    """
    x, y, scale, bias = inputs
    if backend == "triton" and not ring and row_extras is None and column_extras is None and _has_fused_losses(terms):
        return [_fused_losses(inputs, pairs, terms, chunk_size)]
    dtype = inputs.precision()
    own = y if len(y) == len(x) else y[pairs.offset : pairs.offset + len(x)]
    # In full precision, because errors in the gradient of the positive do not average out, unlike those in the sums.
    positive, lowest = scale.to(dtype).flatten() * (x.to(dtype) * own.to(dtype)).sum(1), -scale.to(dtype).flatten()
    if bias is not None:
        positive, lowest = positive + bias.to(dtype).flatten(), lowest + bias.to(dtype).flatten()
    if terms.margin is not None:
        limits = (positive + scale.to(dtype).flatten() * terms.margin).detach()
        pairs = dataclasses.replace(pairs, row_limits=limits, column_limits=limits if pairs.columns_too else None)
    importance, count = terms.normalized, terms.normalized or terms.positive_rate is not None
    from_histogram = count and not ring and weight_sums.applies(pairs, len(x), len(y), x.device)
    if not from_histogram:
        pairs = dataclasses.replace(pairs, importance=importance, count=count)
    sums = _sums(inputs, pairs, backend, chunk_size, ring)
    if from_histogram:
        sums = weight_sums.add(sums, pairs, len(y))
    extra_pairs = dataclasses.replace(pairs, importance=importance, count=count)
    compute = functools.partial(_sums, backend=backend, chunk_size=chunk_size)
    anchors = [extras.add(sums.rows, inputs, row_extras, extra_pairs, compute)]
    if pairs.columns_too:
        extra_pairs = dataclasses.replace(extra_pairs, row_limits=pairs.column_limits)
        anchors.append(extras.add(sums.columns, inputs._replace(x=y), column_extras, extra_pairs, compute))
    further = extras.positive_logits(inputs, row_extras, pairs.offset)
    return [_loss(side, positive, lowest, terms, logits) for side, logits in zip(anchors, (further, None), strict=False)]


def _has_fused_losses(terms: LossTerms) -> bool:
    """Return whether to use `fused_loss`: not for every treatment, nor in a compiled graph, which torch fuses itself."""
    treated = terms.groups is not None or terms.margin is not None or terms.positive_rate is not None or terms.targeted
    return not (treated or torch.compiler.is_compiling())


def _fused_losses(inputs: Inputs, pairs: Pairs, terms: LossTerms, chunk_size: int | None) -> Tensor:
    from clip_negatives.losses.kernels import fused_loss  # imports triton

    n_rows, n_columns = len(inputs.x), len(inputs.y)
    many = n_rows * n_columns > fused_loss.HISTOGRAM_PAIRS
    from_histogram = terms.normalized and many and weight_sums.applies(pairs, n_rows, n_columns, inputs.x.device)
    counted = terms.normalized and not from_histogram
    options = fused_loss.LossOptions(terms.normalized, terms.positive_weight, from_histogram, chunk_size)
    return fused_loss.anchor_losses(inputs, dataclasses.replace(pairs, importance=counted, count=counted), options)


def _sums(inputs: Inputs, pairs: Pairs, backend: str, chunk_size: int | None, ring: bool = False) -> PairSums:
    if ring:
        return ring_sums(inputs, pairs, backend="chunked" if backend == "torch" else backend, chunk_size=chunk_size)
    if backend == "torch":
        return dense.pair_sums(inputs, pairs)
    return op.pair_sums(inputs, pairs, backend=backend, chunk_size=chunk_size)


def _loss(sums: Tensor, positive: Tensor, lowest: Tensor, terms: LossTerms, further: Tensor | None) -> Tensor:
    """Return the loss of each anchor from its sums and logits.

    The logits are those of the own pair (n,), the lowest possible one (1,), and those of `further` positives (n, K).
    """
    negatives, kept = sums[NEGATIVES], sums[KEPT].detach()
    grouped = terms.groups is not None and terms.attract
    n_positives = 1 + (sums[N_MATES].detach() if grouped else torch.zeros_like(kept))
    if terms.normalized:
        # Without kept pairs both are -inf, and the difference would be nan.
        negatives = negatives - (sums[IMPORTANCE] - kept.log()).masked_fill(kept == 0, 0.0)
    positives, total = positive, positive
    if grouped:
        positives, total = torch.logaddexp(positive, sums[MATES]), positive + sums[MATE_LOGITS]
    if further is not None:
        positives, total = torch.logaddexp(positives, further.logsumexp(1)), total + further.sum(1)
        n_positives = n_positives + further.shape[1]
    mean = total / n_positives if grouped or further is not None else positive
    if terms.targeted:
        others = (sums[TARGET_LOGITS] - positive).masked_fill(sums[TARGET_NORM].detach() == -torch.inf, 0.0)
        mean = positive + terms.target_mass * others
    if terms.positive_rate is not None:
        negatives = _debiased(negatives, positives - n_positives.log(), kept, lowest, terms.positive_rate)
    # The log-ratio avoids cancellation where the loss is small. Without negatives it is -inf, which gives a loss of 0.
    odds = negatives - positives
    if terms.positive_weight == 0:  # decoupled loss: an anchor without negatives contributes 0
        return (odds + (positives - mean)).masked_fill(odds == -torch.inf, 0.0)
    alpha = torch.full_like(odds, math.log(terms.positive_weight))
    return torch.logaddexp(odds, alpha) + (positives - mean)


def _debiased(negatives: Tensor, positive: Tensor, kept: Tensor, lowest: Tensor, rate: Tensor) -> Tensor:
    """Return the estimate of Chuang et al. (2020, arXiv:2007.00224, eq. 8), all in logarithms."""
    rate = rate.to(negatives)
    empty = kept == 0
    floor = kept.log() + lowest
    # Avoid nan gradients from the branch that `where` does not take.
    negatives = negatives.masked_fill(empty, 0.0)
    expected = kept.clamp(min=1).log() + rate.log() + positive  # positives among the negatives
    # The exponential of a large difference would be inf, and its gradient nan.
    share = (expected - negatives).clamp(max=0).exp()
    above = (share < 1) & ~empty
    estimate = negatives + torch.log1p(-share.where(above, torch.zeros_like(share))) - torch.log1p(-rate)
    return estimate.where(above & (estimate > floor), floor)
