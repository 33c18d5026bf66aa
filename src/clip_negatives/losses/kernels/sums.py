"""Sums over the pairs of each anchor: the output of every backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Row numbers in a tensor of sums, shape (8, n).
NEGATIVES, IMPORTANCE, MATES, MATE_LOGITS, N_MATES, KEPT, TARGET_LOGITS, TARGET_NORM = range(8)
TARGETS = 3  # number of the targets among the logarithmic sums, in the backward pass
LOG_SUMS = 3  # the first three rows are log-sum-exps of values that may depend on the logits


class PairSums(NamedTuple):
    """Sums over the pairs of each row and of each column, shapes (8, rows) and (8, columns); unused columns are (8, 0).

    With z the logit, b the log-weight, beta the hardness, N the kept incorrect pairs of an anchor (neither removed by b = -inf
    nor above the limit of the anchor), M its mates (the other samples of its group) and <f_i, f_j> the score of a target:

    * ``NEGATIVES``: log-sum-exp over N of ``(1 + beta) z + b``;
    * ``IMPORTANCE``: log-sum-exp over N of ``beta z + b``, -inf if not computed;
    * ``MATES``: log-sum-exp over M of z;
    * ``MATE_LOGITS``, ``N_MATES``: sum over M of z, and of 1;
    * ``KEPT``: size of N, 0 if not computed;
    * ``TARGET_LOGITS``: mean of z over all incorrect pairs, weighted by the softmax of the scores; 0 without targets;
    * ``TARGET_NORM``: log-sum-exp of the scores over the same pairs, -inf without targets.
    """

    rows: Tensor
    columns: Tensor


def empty_sums(n: int, like: Tensor) -> Tensor:
    """Return the sums over no pairs, of the dtype and device of `like`."""
    sums = like.new_zeros(TARGET_NORM + 1, n)
    sums[:LOG_SUMS] = sums[TARGET_NORM] = -torch.inf
    return sums


def add_sums(sums: Tensor, more: Tensor) -> None:
    """Add sums over more pairs of the same anchors, in place."""
    torch.logaddexp(sums[:LOG_SUMS], more[:LOG_SUMS], out=sums[:LOG_SUMS])
    sums[LOG_SUMS:TARGET_LOGITS] += more[LOG_SUMS:TARGET_LOGITS]
    norm = torch.logaddexp(sums[TARGET_NORM], more[TARGET_NORM])
    level = norm.masked_fill(norm == -torch.inf, 0.0)  # -inf - -inf would be nan
    means = [part[TARGET_LOGITS] * (part[TARGET_NORM] - level).exp() for part in (sums, more)]
    sums[TARGET_LOGITS], sums[TARGET_NORM] = means[0] + means[1], norm


def joined_sums(sums: Tensor, more: Tensor, *, log_weight: float = 0.0, mates: bool = False) -> Tensor:
    """Return `sums` with `more` negatives of the same anchors added, shape (8, n), differentiable.

    `log_weight` is added to the log-weight of each added negative. With `mates`, the sums over mates are added too.
    """
    joined = list(sums)
    for part in (NEGATIVES, IMPORTANCE):
        joined[part] = _logaddexp(sums[part], more[part] + log_weight)
    if log_weight > -torch.inf:
        joined[KEPT] = sums[KEPT] + more[KEPT]
    if mates:
        joined[MATES] = _logaddexp(sums[MATES], more[MATES])
        joined[MATE_LOGITS], joined[N_MATES] = sums[MATE_LOGITS] + more[MATE_LOGITS], sums[N_MATES] + more[N_MATES]
    return torch.stack(joined)


def _logaddexp(left: Tensor, right: Tensor) -> Tensor:
    """Return `torch.logaddexp`, with gradients of 0 instead of nan where both are -inf."""
    empty = (left == -torch.inf) & (right == -torch.inf)
    return torch.logaddexp(left.masked_fill(empty, 0.0), right.masked_fill(empty, 0.0)).masked_fill(empty, -torch.inf)
