"""Sums over the pairs of each anchor: the output of every backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEGATIVES, IMPORTANCE, MATES, MATE_LOGITS, N_MATES, KEPT = range(6)  # row numbers in a tensor of sums, shape (6, n)
LOG_SUMS = 3  # the first three rows are log-sum-exps, the others plain sums


class PairSums(NamedTuple):
    """Sums over the pairs of each row and of each column, shapes (6, rows) and (6, columns); unused columns are (6, 0).

    With z the logit, b the log-weight, beta the hardness, N the kept incorrect pairs of an anchor (neither removed by b = -inf
    nor above the limit of the anchor) and M its mates (the other samples of its group):

    * ``NEGATIVES``: log-sum-exp over N of ``(1 + beta) z + b``;
    * ``IMPORTANCE``: log-sum-exp over N of ``beta z + b``, -inf if not computed;
    * ``MATES``: log-sum-exp over M of z;
    * ``MATE_LOGITS``, ``N_MATES``: sum over M of z, and of 1;
    * ``KEPT``: size of N, 0 if not computed.
    """

    rows: Tensor
    columns: Tensor


def empty_sums(n: int, like: Tensor) -> Tensor:
    """Return the sums over no pairs, of the dtype and device of `like`."""
    sums = like.new_zeros(6, n)
    sums[:LOG_SUMS] = -torch.inf
    return sums


def add_sums(sums: Tensor, more: Tensor) -> None:
    """Add sums over more pairs of the same anchors, in place."""
    torch.logaddexp(sums[:LOG_SUMS], more[:LOG_SUMS], out=sums[:LOG_SUMS])
    sums[LOG_SUMS:] += more[LOG_SUMS:]


def joined_sums(sums: Tensor, more: Tensor) -> Tensor:
    """Return `sums` with `more` negatives of the same anchors added, shape (6, n), differentiable."""
    negatives, importance, mates, logits, n_mates, kept = sums
    negatives, importance = _logaddexp(negatives, more[NEGATIVES]), _logaddexp(importance, more[IMPORTANCE])
    return torch.stack([negatives, importance, mates, logits, n_mates, kept + more[KEPT]])


def _logaddexp(left: Tensor, right: Tensor) -> Tensor:
    """Return `torch.logaddexp`, with gradients of 0 instead of nan where both are -inf."""
    empty = (left == -torch.inf) & (right == -torch.inf)
    return torch.logaddexp(left.masked_fill(empty, 0.0), right.masked_fill(empty, 0.0)).masked_fill(empty, -torch.inf)
