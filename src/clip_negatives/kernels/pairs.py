"""Which pairs a loss is about, and the few sums over them that it needs: what every backend takes and returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.interfaces import LossTerms

NEGATIVES, IMPORTANCE, MATES, MATE_LOGITS, N_MATES, KEPT = range(6)
"""Rows of the sums of n anchors, a tensor of shape (6, n), see `PairSums`."""

LOGARITHMIC = 3
"""The first so many rows are log-sum-exps, the others plain sums."""


class PairSums(NamedTuple):
    """Sums over the pairs of each row and of each column, shapes (6, rows) and (6, columns); unused columns are (6, 0).

    With z the logit, b the log-weight, beta the hardness, N the incorrect pairs of an anchor that are kept (neither removed by
    b = -inf nor over its limit) and M its mates, the other samples of its group:

    * ``NEGATIVES``: log-sum-exp over N of ``(1 + beta) z + b``;
    * ``IMPORTANCE``: log-sum-exp over N of ``beta z + b``, -inf if not asked for;
    * ``MATES``: log-sum-exp over M of z;
    * ``MATE_LOGITS``, ``N_MATES``: sum over M of z, and of 1;
    * ``KEPT``: size of N, 0 if not asked for.
    """

    rows: Tensor
    columns: Tensor


class Side(NamedTuple):
    """Hold what belongs to the samples of the rows, or of the columns.

    Attributes:
        image_labels: row of the image table, int64, shape (n,).
        text_labels: row of the text table, int64, shape (n,).
        factors: float, shape (n, R).
        groups: samples of one group are positives of each other, int64, shape (n,).
        limits: logit over which a pair is no negative of this sample, shape (n,).
    """

    image_labels: Tensor | None = None
    text_labels: Tensor | None = None
    factors: Tensor | None = None
    groups: Tensor | None = None
    limits: Tensor | None = None

    @classmethod
    def of(cls, terms: LossTerms | None, groups: Tensor | None = None) -> Side:
        """Return what the terms of a batch say of its samples; `groups` go before those of the terms."""
        if terms is None:
            return cls(groups=groups)
        groups = terms.groups if groups is None else groups
        image_labels = None if terms.image_table is None else terms.image_labels
        text_labels = None if terms.text_table is None else terms.text_labels
        return cls(image_labels, text_labels, terms.factors, groups)

    def part(self, where: slice) -> Side:
        """Return those of some samples."""
        return Side(*(None if tensor is None else tensor[where] for tensor in self))


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Say how the pairs of the rows and columns of a problem are weighted, and what to sum.

    The log-weight of (i, j) is ``image_table[a_i, a_j] + text_table[c_i, c_j] - <factors_i, factors_j>``; absent parts count 0.
    Where the rows are texts, the tables are handed over transposed.

    Attributes:
        rows: what belongs to the rows.
        columns: what belongs to the columns.
        image_table: float, shape (K, K).
        text_table: float, shape (K', K').
        offset: the positive of row i is column ``offset + i``.
        columns_too: whether columns are anchors as well, or only rows.
        hardness: beta, at least 0.
        importance: whether to sum the weights, and to count.
        count: whether to count.
    """

    rows: Side
    columns: Side
    image_table: Tensor | None = None
    text_table: Tensor | None = None
    offset: int = 0
    columns_too: bool = True
    hardness: float = 0.0
    importance: bool = False
    count: bool = False

    def transposed_tables(self) -> Pairs:
        """Return the same for the other modality as rows."""
        image, text = (None if table is None else table.T for table in (self.image_table, self.text_table))
        return dataclasses.replace(self, image_table=image, text_table=text)

    @property
    def weighted(self) -> bool:
        """Return whether pairs have log-weights."""
        return self.image_table is not None or self.text_table is not None or self.rows.factors is not None


def empty_sums(n: int, like: Tensor) -> Tensor:
    """Return the sums over nothing, of the dtype and device of `like`."""
    sums = like.new_zeros(6, n)
    sums[:LOGARITHMIC] = -torch.inf
    return sums


def add_sums(sums: Tensor, more: Tensor) -> None:
    """Add sums over further pairs of the same anchors in place."""
    torch.logaddexp(sums[:LOGARITHMIC], more[:LOGARITHMIC], out=sums[:LOGARITHMIC])
    sums[LOGARITHMIC:] += more[LOGARITHMIC:]


def joined(sums: Tensor, more: Tensor) -> Tensor:
    """Return sums with further negatives of the same anchors, shape (6, n), differentiable."""
    negatives, importance, mates, logits, n_mates, kept = sums
    return torch.stack(
        [
            _logaddexp(negatives, more[NEGATIVES]),
            _logaddexp(importance, more[IMPORTANCE]),
            mates,
            logits,
            n_mates,
            kept + more[KEPT],
        ]
    )


def _logaddexp(one: Tensor, other: Tensor) -> Tensor:
    """Return the same as torch, with gradients of 0 and not of nan where both are -inf."""
    nothing = (one == -torch.inf) & (other == -torch.inf)
    return torch.logaddexp(one.masked_fill(nothing, 0.0), other.masked_fill(nothing, 0.0)).masked_fill(nothing, -torch.inf)


def sum_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """Return the precision of products, sums and exponentials: at least float32."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
