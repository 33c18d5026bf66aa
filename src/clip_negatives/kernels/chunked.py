"""Backend "chunked": sums over pairs on any device without a matrix of all of them, neither of logits nor of weights.

Rows are taken some at a time. The forward pass keeps the log-sum-exp of each row and, carried from block to block, of each
column; the backward pass computes each block of logits again and turns it into gradients at once. One block serves rows and
columns, so a step costs four matrix products where open_clip's costs six, and O(chunk * G) memory where open_clip's costs
O(B * G) several times. On the CPU one exponential serves both as well, where the range of numbers allows it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.kernels.blocks import Blocks, Term
from clip_negatives.kernels.pairs import (
    KEPT,
    LOGARITHMIC,
    MATE_LOGITS,
    N_MATES,
    NEGATIVES,
    Pairs,
    PairSums,
    add_sums,
    empty_sums,
    sum_dtype,
)

HEADROOM = 40.0
"""The largest of a block, or of all sums, becomes exp(40), so that there is room below it: float32 ends at exp(88)."""

SPREAD = 90.0
"""Sums that lie this far apart still share exponentials: what is left of the range of float32 below exp(-50) is 37."""


def forward(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, *, chunk_size: int | None = None
) -> PairSums:
    """Return the sums of the rows x, shape (B, D), and columns y, shape (G, D)."""
    like = x.new_empty(0, dtype=sum_dtype(x, y))
    rows, columns = empty_sums(len(x), like), empty_sums(len(y) if pairs.columns_too else 0, like)
    blocks = Blocks(x, y, scale, bias, pairs, chunk_size)
    for part in blocks.parts():
        of_rows, of_columns = empty_sums(part.stop - part.start, like), empty_sums(columns.shape[1], like)
        mates = blocks.load(part)
        if mates is not None:
            for dim, sums in ((1, of_rows), (0, of_columns)) if pairs.columns_too else ((1, of_rows),):
                sums[MATE_LOGITS] = blocks.logits.masked_fill(~mates, 0.0).sum(dim)
                sums[N_MATES] = mates.sum(dim).to(sums.dtype)
        for term in blocks.terms(mates):
            if pairs.columns_too:
                of_rows[term.sum], of_columns[term.sum] = _log_sums(term, blocks.scratch)
                if term.sum == NEGATIVES and pairs.count:
                    of_columns[KEPT] = torch.gt(term.columns, -torch.inf, out=blocks.scratch).sum(0)
            else:
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
    levels = _shared_levels(sums)
    x_grad = x.new_empty(x.shape, dtype=dtype) if wants[0] else None
    y_grad = y.new_zeros(y.shape, dtype=dtype) if wants[1] else None
    blocks = Blocks(x, y, scale, bias, pairs, chunk_size)
    for part in blocks.parts():
        mates = blocks.load(part)
        here = rows.part(part)

        terms = blocks.terms(mates)
        slopes = _write_slopes(next(terms), here, columns, levels, blocks.scratch)
        if blocks.keeps_logits:
            slopes = slopes.clone()  # the next term comes in the same memory
        for term in terms:
            slopes += _write_slopes(term, here, columns, levels, blocks.scratch)
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

    def factors(self, term: Term, level: float) -> Tensor:
        """Return what turns ``exp(values - level)`` into slopes."""
        found = (level - self.levels[term.sum]).exp() * term.slope
        return found if self.signs is None else found * self.signs[term.sum]

    def write_slopes(self, values: Tensor, term: Term, *, out: Tensor) -> Tensor:
        """Write the derivatives of one of the sums by the logits."""
        torch.sub(values, self.levels[term.sum], out=out).exp_()
        if self.signs is not None:
            out *= self.signs[term.sum]
        return out if term.slope == 1.0 else out.mul_(term.slope)


def _shared_levels(sums: PairSums) -> list[float | None]:
    """Return a level for each logarithmic sum from which the slopes of rows and columns follow by one exponential.

    None where sums lie too far apart, or where asking would wait for an accelerator.
    """
    if sums.rows.device.type != "cpu" or not sums.columns.shape[1]:
        return [None] * LOGARITHMIC
    levels: list[float | None] = []
    for part in range(LOGARITHMIC):
        found = torch.cat([side[part] for side in sums])
        found = found[found > -torch.inf]
        low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 0.0)
        levels.append(high - HEADROOM if high - low <= SPREAD else None)
    return levels


def _write_slopes(term: Term, rows: _Anchors, columns: _Anchors, levels: list[float | None], scratch: Tensor) -> Tensor:
    """Write the slopes of a sum into the memory of its values.

    Where r, the level of a row, and c, of a column, are not far from l, one exponential does:
    ``exp(v - r) + exp(v - c) = exp(v - l) (exp(l - r) + exp(l - c))``.
    """
    level = levels[term.sum]
    if level is not None and term.rows is term.columns:
        torch.add(rows.factors(term, level), columns.factors(term, level), out=scratch)
        return term.rows.sub_(level).exp_().mul_(scratch)
    if not columns.grads.shape[1]:
        return rows.write_slopes(term.rows, term, out=term.rows)
    of_columns = columns.write_slopes(term.columns, term, out=scratch)
    return rows.write_slopes(term.rows, term, out=term.rows).add_(of_columns)


def _log_sums(term: Term, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exps of the rows and of the columns of a block, by one exponential if that loses no digits."""
    if term.rows is term.columns and term.rows.device.type == "cpu":
        level = float(term.rows.T.max()) - HEADROOM  # as it lies in memory, else torch copies it
        if level > -torch.inf:
            torch.sub(term.rows, level, out=scratch).exp_()
            of_rows, of_columns = scratch.sum(1), scratch.sum(0)
            information = torch.finfo(scratch.dtype)
            if min(float(of_rows.min()), float(of_columns.min())) >= information.tiny / information.eps**2:
                return of_rows.log_().add_(level), of_columns.log_().add_(level)
    return _logsumexp(term.rows, 1, scratch), _logsumexp(term.columns, 0, scratch)


def _logsumexp(block: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """Return ``block.logsumexp(dim)`` without a temporary of the block's size."""
    top = block.amax(dim, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)  # nothing there: -inf - -inf would not be a number
    torch.sub(block, top, out=scratch).exp_()
    return scratch.sum(dim).log_().add_(top.squeeze(dim))
