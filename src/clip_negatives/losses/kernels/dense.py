"""Backend "torch": sums over pairs in plain torch. It holds all logits, as open_clip does, and all log-weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.losses.kernels import log_weights
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
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
    empty_sums,
)


def open_clip_loss(by_image: Inputs, by_text: Inputs | None, offset: int) -> Tensor:
    """Return the unweighted loss, bit-equal to `open_clip.ClipLoss`: the same operations in the same order.

    Without `by_text` (gathered features), the logits are transposed instead of computed again.
    """
    logits = product(by_image)
    transposed = logits.T if by_text is None else product(by_text)
    target = torch.arange(len(logits), device=logits.device) + offset
    return (F.cross_entropy(logits, target) + F.cross_entropy(transposed, target)) / 2


def pair_sums(inputs: Inputs, pairs: Pairs) -> PairSums:
    """Return the sums of the rows and columns; differentiable."""
    logits = product(inputs)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast may have made them bfloat16
    positive = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    positive.diagonal(pairs.offset).fill_(True)
    mates = torch.zeros_like(positive)
    if pairs.rows.groups is not None and pairs.columns.groups is not None:
        mates = (pairs.rows.groups[:, None] == pairs.columns.groups) & ~positive
    weights = log_weights.all_pairs(pairs, logits.dtype) if pairs.rows.weighted else torch.zeros_like(logits)
    kept = ~positive & ~mates & (weights != -torch.inf)  # NaN stays, and makes the loss NaN
    scores = _target_scores(pairs, positive, logits.dtype)
    sides = [empty_sums(0, logits), empty_sums(0, logits)]
    for dim, limits in ((1, pairs.row_limits), (0, pairs.column_limits))[: 1 + pairs.columns_too]:
        negatives = kept if limits is None else kept & (logits <= limits.unsqueeze(dim))
        sums = _sums(logits, weights, negatives, mates, pairs, dim)
        if scores is not None:
            sums[TARGET_NORM] = scores.logsumexp(dim)
            # An anchor without incorrect pairs has a softmax of nan.
            sums[TARGET_LOGITS] = (logits * scores.softmax(dim).nan_to_num(0.0)).sum(dim)
        sides[1 - dim] = torch.stack(sums)
    return PairSums(*sides)


def _target_scores(pairs: Pairs, positive: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return ``<f_i, f_j>`` of all pairs, -inf for positives; None without targets."""
    rows, columns = pairs.rows.target_factors, pairs.columns.target_factors
    if rows is None or columns is None:
        return None
    with torch.autocast(rows.device.type, enabled=False):  # in lower precision, the softmax would lose digits
        return (rows.to(dtype) @ columns.to(dtype).T).masked_fill(positive, -torch.inf)


def _sums(logits: Tensor, weights: Tensor, negatives: Tensor, mates: Tensor, pairs: Pairs, dim: int) -> list[Tensor]:
    """Return the sums along one dimension, each of shape (n,)."""
    sums = list(empty_sums(logits.shape[1 - dim], logits))
    sums[N_MATES], sums[KEPT] = (mask.sum(dim).to(logits.dtype) for mask in (mates, negatives))
    weights = weights.masked_fill(~negatives, -torch.inf)
    sums[NEGATIVES] = _logsumexp((1 + pairs.hardness) * logits, weights, dim)
    if pairs.importance:
        sums[IMPORTANCE] = _logsumexp(pairs.hardness * logits, weights, dim)
    if pairs.rows.groups is not None:
        sums[MATES] = _logsumexp(logits, torch.zeros_like(logits).masked_fill(~mates, -torch.inf), dim)
        sums[MATE_LOGITS] = (logits * mates).sum(dim)
    return sums


def _logsumexp(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Return ``(values + weights).logsumexp(dim)``, with gradients of 0 instead of nan where all weights are -inf."""
    empty = (weights == -torch.inf).all(dim, keepdim=True)
    return (values + weights.masked_fill(empty, 0.0)).logsumexp(dim).masked_fill(empty.squeeze(dim), -torch.inf)


def product(inputs: Inputs) -> Tensor:
    """Return the logits as open_clip computes them: under autocast, in the lower precision."""
    logits = inputs.scale * inputs.x @ inputs.y.T
    if inputs.bias is not None:
        logits += inputs.bias  # in place, as in open_clip: under autocast, a bias of shape (1,) must not change the dtype
    return logits
