"""Backend "chunked": sums over pairs on any device without a matrix of all of them, neither of logits nor of weights.

Rows are taken some at a time. The forward pass keeps the log-sum-exp of each row and, carried from block to block, of each
column; the backward pass computes each block of logits again and turns it into gradients at once. One block serves rows and
columns, so a step costs four matrix products where open_clip's costs six, and O(chunk * G) memory where open_clip's costs
O(B * G) several times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.kernels import log_weights
from clip_negatives.kernels.pairs import (
    IMPORTANCE,
    KEPT,
    LOGARITHMIC,
    MATE_LOGITS,
    MATES,
    N_MATES,
    NEGATIVES,
    Pairs,
    PairSums,
    add_sums,
    empty_sums,
    sum_dtype,
)

BLOCK_BYTES = 16 * 2**20
"""Size of a block of logits if no chunk size is given: large enough for full speed, small enough not to be noticed."""


class Term(NamedTuple):
    """Hold the values of a block that one of the logarithmic sums is over, until the next is asked for.

    Attributes:
        sum: which.
        slope: derivative of the values by the logits.
        rows: values, -inf where a pair does not belong to the sum of its row; may be overwritten.
        columns: the same for the sums of columns; `rows` itself where they do not differ.
    """

    sum: int
    slope: float
    rows: Tensor
    columns: Tensor


def forward(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, *, chunk_size: int | None = None
) -> PairSums:
    """Return the sums of the rows x, shape (B, D), and columns y, shape (G, D)."""
    like = x.new_empty(0, dtype=sum_dtype(x, y))
    rows, columns = empty_sums(len(x), like), empty_sums(len(y) if pairs.columns_too else 0, like)
    blocks = _Blocks(x, y, scale, bias, pairs, chunk_size)
    for part in blocks.parts():
        of_rows, of_columns = empty_sums(part.stop - part.start, like), empty_sums(columns.shape[1], like)
        mates = blocks.load(part)
        if mates is not None:
            for dim, sums in ((1, of_rows), (0, of_columns)) if pairs.columns_too else ((1, of_rows),):
                sums[MATE_LOGITS] = blocks.logits.masked_fill(~mates, 0.0).sum(dim)
                sums[N_MATES] = mates.sum(dim).to(sums.dtype)
        for term in blocks.terms(mates):
            if pairs.columns_too:
                of_columns[term.sum] = _logsumexp(term.columns, 0, blocks.scratch)
                if term.sum == NEGATIVES and pairs.count:
                    of_columns[KEPT] = torch.gt(term.columns, -torch.inf, out=blocks.scratch).sum(0)
            of_rows[term.sum] = _logsumexp(term.rows, 1, blocks.scratch)
            if term.sum == NEGATIVES and pairs.count:
                of_rows[KEPT] = torch.gt(term.rows, -torch.inf, out=blocks.scratch).sum(1)
        rows[:, part] = of_rows
        if pairs.columns_too:
            add_sums(columns, of_columns)
    return PairSums(rows, columns)


def backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    pairs: Pairs,
    sums: PairSums,
    grads: PairSums,
    *,
    wants: tuple[bool, bool] = (True, True),
    chunk_size: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``scale * x``, times 1 / scale, and of y likewise: ``S @ y`` and ``S.T @ x`` with S = dL/dz.

    Args:
        x: rows, shape (B, D).
        y: columns, shape (G, D).
        scale: of the logits.
        bias: of the logits.
        pairs: as in `forward`.
        sums: what `forward` returned, over all pairs of these rows and columns (and of others, where a problem is split).
        grads: dL of the sums.
        wants: which of the two are wanted; the other is None.
        chunk_size: rows at a time.
    """
    dtype = sum_dtype(x, y)
    if not pairs.hardness:
        pairs = dataclasses.replace(pairs, importance=False)  # weights alone have no slope
    rows, columns = (_Anchors.of(side, grad, dim) for side, grad, dim in zip(sums, grads, (1, 0), strict=True))
    x_grad = x.new_empty(x.shape, dtype=dtype) if wants[0] else None
    y_grad = y.new_zeros(y.shape, dtype=dtype) if wants[1] else None
    blocks = _Blocks(x, y, scale, bias, pairs, chunk_size)
    for part in blocks.parts():
        mates = blocks.load(part)
        here = rows.part(part)

        def slopes_of(term: Term, here: _Anchors = here) -> Tensor:
            if not pairs.columns_too:
                return here.write_slopes(term.rows, term, out=term.rows)
            of_columns = columns.write_slopes(term.columns, term, out=blocks.scratch)
            return here.write_slopes(term.rows, term, out=term.rows).add_(of_columns)

        terms = blocks.terms(mates)
        slopes = slopes_of(next(terms))
        if blocks.keeps_logits:
            slopes = slopes.clone()  # the next term comes in the same memory
        for term in terms:
            slopes += slopes_of(term)
        if mates is not None:
            slopes += (grads.rows[MATE_LOGITS, part, None] + columns.linear(mates)) * mates
        if x_grad is not None:
            torch.mm(slopes, blocks.columns, out=x_grad[part])
        if y_grad is not None:
            y_grad.addmm_(slopes.T, x[part].to(dtype))
    return x_grad, y_grad


class _Anchors(NamedTuple):
    """Hold what turns the values of a block into slopes: ``sign * exp(values - level)`` is gradient times share of the sum.

    Attributes:
        levels: sums less the logarithm of the size of their gradients, +inf where there is nothing, shape (3, n) and an axis
            along which the anchor does not change.
        signs: signs of the gradients, likewise; None where all are known to be positive.
        grads: gradients of the plain sums.
        axis: which axis that is.
    """

    levels: Tensor
    signs: Tensor | None
    grads: Tensor
    axis: int

    @classmethod
    def of(cls, sums: Tensor, grads: Tensor, axis: int) -> _Anchors:
        """Return those of the sums and their gradients, shape (6, n)."""
        sums, logarithmic = sums[:LOGARITHMIC], grads[:LOGARITHMIC]
        nothing = (sums == -torch.inf) | (logarithmic == 0)
        levels = (sums - logarithmic.abs().log()).masked_fill(nothing, torch.inf).unsqueeze(axis + 1)
        # Asking an accelerator would wait for it.
        positive = sums.device.type == "cpu" and bool((logarithmic >= 0).all())
        return cls(levels, None if positive else logarithmic.sign().unsqueeze(axis + 1), grads, axis)

    def part(self, where: slice) -> _Anchors:
        """Return those of some rows."""
        return self._replace(levels=self.levels[:, where], signs=None if self.signs is None else self.signs[:, where])

    def linear(self, like: Tensor) -> Tensor:
        """Return the gradients of the sums of logits, 0 where there are no anchors."""
        return self.grads[MATE_LOGITS] if self.grads.shape[1] else self.grads.new_zeros(like.shape[1])

    def write_slopes(self, values: Tensor, term: Term, *, out: Tensor) -> Tensor:
        """Write the derivatives of one of the sums by the logits."""
        torch.sub(values, self.levels[term.sum], out=out).exp_()
        if self.signs is not None:
            out *= self.signs[term.sum]
        return out if term.slope == 1.0 else out.mul_(term.slope)


class _Blocks:
    """Walk through the matrix of all pairs some rows at a time, in the same memory.

    Fresh memory has its pages mapped in, which costs more than the look-ups. Blocks lie column by column, as the look-up of
    weights is quickest so.
    """

    logits: Tensor
    scratch: Tensor

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, chunk: int | None) -> None:
        self.pairs, self.dtype = pairs, sum_dtype(x, y)
        self.x, self.columns = x, y.to(self.dtype)
        self.scale, self.bias = scale.to(self.dtype), None if bias is None else bias.to(self.dtype)
        self.chunk = chunk or max(16, BLOCK_BYTES // (torch.finfo(self.dtype).bits // 8 * len(y)))
        # Several sums over one block need the logits more than once.
        self.keeps_logits = pairs.rows.groups is not None or bool(pairs.hardness)
        needed = 2 + (pairs.weighted or pairs.importance or self.keeps_logits) + self.keeps_logits
        self._memory = x.new_empty(needed, min(self.chunk, len(x)) * len(y), dtype=self.dtype)

    def parts(self) -> Iterator[slice]:
        """Yield the rows of each block."""
        for start in range(0, len(self.x), self.chunk):
            yield slice(start, min(start + self.chunk, len(self.x)))

    def load(self, part: slice) -> Tensor | None:
        """Compute the logits of a block; return which of its pairs are mates, None where there are no groups."""
        self.part = part
        n, m = part.stop - part.start, len(self.columns)
        self.logits, self.scratch, *self._more = (flat[: n * m].view(m, n).T for flat in self._memory)
        torch.mm(self.scale * self.x[part].to(self.dtype), self.columns.T, out=self.logits)
        if self.bias is not None:
            self.logits += self.bias
        rows, columns = self.pairs.rows.groups, self.pairs.columns.groups
        if rows is None or columns is None:
            return None
        mates = rows[part, None] == columns
        self._positives(mates).fill_(False)
        return mates

    def terms(self, mates: Tensor | None) -> Iterator[Term]:
        """Yield what is to be summed over this block."""
        pairs, logits = self.pairs, self.logits
        drops = [
            None if limits is None else logits > limits
            for limits in (
                None if pairs.rows.limits is None else pairs.rows.limits[self.part, None],
                pairs.columns.limits if pairs.columns_too else None,
            )
        ]
        weights = None
        if pairs.weighted:
            weights = log_weights.write_block(pairs, self.part, self._more[0], self.scratch)
        elif self._more:
            weights = self._more[0].zero_()
        if weights is not None:
            self._positives(weights).fill_(-torch.inf)
            if mates is not None:
                weights.masked_fill_(mates, -torch.inf)
            if pairs.importance and not pairs.hardness:
                yield Term(IMPORTANCE, 0.0, *self._without(weights, drops))
        if weights is None or not self.keeps_logits:
            values = logits if weights is None else logits.add_(weights)
            self._positives(values).fill_(-torch.inf)
            yield Term(NEGATIVES, 1.0, *self._without(values, drops))
            return
        values = self._more[1]
        yield self._weighted(NEGATIVES, 1.0 + pairs.hardness, weights, drops, values)
        if pairs.importance and pairs.hardness:
            yield self._weighted(IMPORTANCE, pairs.hardness, weights, drops, values)
        if mates is not None:
            values.copy_(logits).masked_fill_(~mates, -torch.inf)
            yield Term(MATES, 1.0, values, values)

    def _weighted(self, which: int, slope: float, weights: Tensor, drops: list[Tensor | None], out: Tensor) -> Term:
        """Return the term of ``weights + slope * logits``."""
        torch.add(weights, self.logits, alpha=slope, out=out)
        return Term(which, slope, *self._without(out, drops))

    @staticmethod
    def _without(values: Tensor, drops: list[Tensor | None]) -> list[Tensor]:
        """Return the values for rows and for columns, without what is dropped for each."""
        return [values if drop is None else values.masked_fill(drop, -torch.inf) for drop in drops]

    def _positives(self, block: Tensor) -> Tensor:
        """Return a view of the positives of the block."""
        return block.diagonal(self.part.start + self.pairs.offset)[: len(block)]


def _logsumexp(block: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """Return ``block.logsumexp(dim)`` without a temporary of the block's size."""
    top = block.amax(dim, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)  # nothing there: -inf - -inf would not be a number
    torch.sub(block, top, out=scratch).exp_()
    return scratch.sum(dim).log_().add_(top.squeeze(dim))
