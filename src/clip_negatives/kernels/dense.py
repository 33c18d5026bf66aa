"""Backend "torch": sums over pairs as their formulas read. Holds all logits, as open_clip does, and the log-weights as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.kernels import log_weights
from clip_negatives.kernels.pairs import (
    IMPORTANCE,
    KEPT,
    MATE_LOGITS,
    MATES,
    N_MATES,
    NEGATIVES,
    Pairs,
    PairSums,
    empty_sums,
    sum_dtype,
)


def open_clips_loss(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    all_x: Tensor,
    all_y: Tensor,
    offset: int,
    *,
    shared: bool,
) -> Tensor:
    """Return the unweighted loss by the operations of `open_clip.ClipLoss` in its order, so that results are equal to the bit.

    `shared` says whether it transposes one logit matrix (gathered features) or computes a second (one process, local loss).
    """
    logits = _logits(x, all_y, scale, bias)
    transposed = logits.T if shared else _logits(y, all_x, scale, bias)
    target = torch.arange(len(x), device=x.device) + offset
    return (F.cross_entropy(logits, target) + F.cross_entropy(transposed, target)) / 2


def pair_sums(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> PairSums:
    """Return the sums of the rows x, shape (B, D), and columns y, shape (G, D); differentiable."""
    logits = _logits(x, y, scale, bias)
    logits = logits.to(sum_dtype(logits, logits))  # whatever autocast made of them
    positive = torch.zeros(logits.shape, dtype=torch.bool, device=x.device)
    positive.diagonal(pairs.offset).fill_(True)
    mates = torch.zeros_like(positive)
    if pairs.rows.groups is not None and pairs.columns.groups is not None:
        mates = (pairs.rows.groups[:, None] == pairs.columns.groups) & ~positive
    weights = torch.zeros_like(logits)
    if pairs.weighted:
        weights = log_weights.everything(pairs, logits.dtype)
    kept = ~positive & ~mates & (weights > -torch.inf)
    found = []
    for dim, side in ((1, pairs.rows), (0, pairs.columns)):
        if dim == 0 and not pairs.columns_too:
            found.append(logits.new_zeros(6, 0))
            continue
        negatives = kept if side.limits is None else kept & (logits <= side.limits.unsqueeze(dim))
        found.append(_sums(logits, weights, negatives, mates, pairs, dim))
    return PairSums(*found)


def _sums(logits: Tensor, weights: Tensor, negatives: Tensor, mates: Tensor, pairs: Pairs, dim: int) -> Tensor:
    """Return the sums along one dimension, shape (6, n)."""
    sums = list(empty_sums(logits.shape[1 - dim], logits))
    sums[N_MATES], sums[KEPT] = (mask.sum(dim).to(logits.dtype) for mask in (mates, negatives))
    weights = weights.masked_fill(~negatives, -torch.inf)
    sums[NEGATIVES] = _logsumexp((1 + pairs.hardness) * logits, weights, dim)
    if pairs.importance:
        sums[IMPORTANCE] = _logsumexp(pairs.hardness * logits, weights, dim)
    if pairs.rows.groups is not None:
        sums[MATES] = _logsumexp(logits, torch.zeros_like(logits).masked_fill(~mates, -torch.inf), dim)
        sums[MATE_LOGITS] = (logits * mates).sum(dim)
    return torch.stack(sums)


def _logsumexp(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Return ``(values + weights).logsumexp(dim)``, with gradients of 0 and not of nan where all weights are -inf."""
    nothing = (weights == -torch.inf).all(dim, keepdim=True)
    found = (values + weights.masked_fill(nothing, 0.0)).logsumexp(dim)
    return found.masked_fill(nothing.squeeze(dim), -torch.inf)


def _logits(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    logits = scale * x @ y.T
    if bias is not None:
        logits += bias  # in place, as open_clip does, so that a bias of shape (1,) does not widen them under autocast
    return logits
