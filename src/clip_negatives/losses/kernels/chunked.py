"""Backend "chunked": sums over pairs on any device, without a matrix of all logits or weights.

The forward pass stores the log-sum-exp of each row and column. The backward pass computes each block of logits again, and from
it the slopes: the derivatives of the loss with respect to the logits. A block is used for rows and for columns. A step takes
four matrix products and O(chunk * G) memory; open_clip's loss takes six products and several times O(B * G) memory. On the CPU,
rows and columns also share one exponential for each pair, if the values are close enough. Targets by similarity take two more
products, of their factors, and one more block of memory. If all pairs are in one block, the backward pass does not compute it
again: the forward pass keeps its logits and scores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.losses.kernels.blocks import Blocks, Term
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import (
    KEPT,
    MATE_LOGITS,
    N_MATES,
    NEGATIVES,
    TARGET_LOGITS,
    TARGET_NORM,
    TARGETS,
    PairSums,
    add_sums,
    empty_sums,
)

HEADROOM = 40.0  # the largest value becomes exp(40), which leaves room for small values; float32 overflows at exp(88)
SPREAD = 90.0  # sums up to this far apart share exponentials: the smallest becomes exp(-50), float32 ends at exp(-87)


def forward(inputs: Inputs, pairs: Pairs, *, chunk_size: int | None = None, kept: list[Tensor] | None = None) -> PairSums:
    """Return the sums of the rows and columns; write the block into the empty list `kept` if there is only one block."""
    like = inputs.x.new_empty(0, dtype=inputs.precision())
    rows, columns = empty_sums(len(inputs.x), like), empty_sums(len(inputs.y) if pairs.columns_too else 0, like)
    blocks = Blocks(inputs, pairs, chunk_size, kept)
    for part in blocks.parts():
        row_sums, column_sums = rows[:, part], empty_sums(columns.shape[1], like) if part.start else columns
        sides = ((1, row_sums), (0, column_sums))[: 1 + pairs.columns_too]
        mates = blocks.load(part)
        if mates is not None:
            for dim, sums in sides:
                sums[MATE_LOGITS] = blocks.logits.masked_fill(~mates, 0.0).sum(dim)
                sums[N_MATES] = mates.sum(dim).to(sums.dtype)
        if pairs.targeted:
            for dim, sums in sides:
                sums[TARGET_LOGITS], sums[TARGET_NORM] = _target_sums(blocks, dim)
        for term in blocks.terms(mates):
            logs = _log_sums(term, blocks.scratch, pairs.columns_too)
            for (dim, sums), values, log_sums in zip(sides, (term.rows, term.columns), logs, strict=False):
                sums[term.sum] = log_sums
                if term.sum == NEGATIVES and pairs.count:
                    sums[KEPT] = torch.gt(values, -torch.inf, out=blocks.scratch).sum(dim)
        if pairs.columns_too and part.start:
            add_sums(columns, column_sums)
    return PairSums(rows, columns)


def backward(
    inputs: Inputs,
    pairs: Pairs,
    sums: PairSums,
    grads: PairSums,
    wants: Sequence[bool],
    *,
    chunk_size: int | None = None,
    kept: list[Tensor] | None = None,
) -> list[Tensor | None]:
    """Return ``S @ y`` and ``S.T @ x`` with the slopes S = dL/dz: the gradients of x and of y, divided by the scale.

    `sums` are over all pairs of these rows and columns, with the ring also outside `inputs`. `kept` is from `forward`, or None.
    Unwanted gradients are None.
    """
    x, y, dtype = inputs.x, inputs.y, inputs.precision()
    if not pairs.hardness:
        pairs = dataclasses.replace(pairs, importance=False)  # does not depend on the logits
    gradient_of = functools.cache(functools.partial(_SumGrads.of, sums, grads))
    x_grad = x.new_empty(x.shape, dtype=dtype) if wants[0] else None
    y_grad = y.new_zeros(y.shape, dtype=dtype) if wants[1] else None
    blocks = Blocks(inputs, pairs, chunk_size, kept)
    for part in blocks.parts():
        mates = blocks.load(part)
        terms = blocks.terms(mates)
        term = next(terms)
        slopes = gradient_of(term.sum).write_slopes(term, part, blocks.scratch)
        for term in itertools.chain(terms, [blocks.target_term()] if pairs.targeted else []):
            slopes += gradient_of(term.sum).write_slopes(term, part, blocks.scratch)
        if mates is not None:
            column_grads = grads.columns[MATE_LOGITS] if pairs.columns_too else 0.0
            slopes += (grads.rows[MATE_LOGITS, part, None] + column_grads) * mates
        if x_grad is not None:
            torch.mm(slopes, blocks.columns, out=x_grad[part])
        if y_grad is not None:
            y_grad.addmm_(slopes.T, x[part].to(dtype))
    return [x_grad, y_grad]


class _SideGrads(NamedTuple):
    """Gradients g of a logarithmic sum L as level and sign: ``g exp(v - L) = sign * exp(v - level)`` for each value v."""

    levels: Tensor  # L - log |g|, +inf for empty sums and for g = 0; (n, 1) for rows, (1, n) for columns
    signs: Tensor | None  # in the shape of the levels; None if all are known to be positive

    @classmethod
    def of(cls, sums: Tensor, grads: Tensor, axis: int) -> _SideGrads:
        empty = (sums == -torch.inf) | (grads == 0)
        levels = (sums - grads.abs().log()).masked_fill_(empty, torch.inf).unsqueeze(axis)
        # Not on an accelerator: reading the values would wait for it.
        positive = sums.device.type == "cpu" and bool((grads >= 0).all())
        return cls(levels, None if positive else grads.sign().unsqueeze(axis))

    def part(self, rows: slice) -> _SideGrads:
        return _SideGrads(self.levels[rows], None if self.signs is None else self.signs[rows])

    def factors(self, term: Term, level: float) -> Tensor:
        """Return the factors that turn ``exp(values - level)``, with one common level, into slopes."""
        factors = (level - self.levels).exp() * term.slope
        return factors if self.signs is None else factors * self.signs

    def write_slopes(self, values: Tensor, term: Term, *, out: Tensor) -> Tensor:
        """Write the slopes of one sum."""
        torch.sub(values, self.levels, out=out).exp_()
        if self.signs is not None:
            out *= self.signs
        return out if term.slope == 1.0 else out.mul_(term.slope)


class _SumGrads(NamedTuple):
    """Gradients of one logarithmic sum of all rows and columns.

    The gradient of `TARGET_LOGITS` has the same form, with scores as values: ``g softmax(score) = g exp(score - TARGET_NORM)``.
    """

    rows: _SideGrads
    columns: _SideGrads
    level: float | None  # near the sums of rows and columns, so that they share one exponential; None if they cannot

    @classmethod
    def of(cls, sums: PairSums, grads: PairSums, index: int) -> _SumGrads:
        of_sum, of_grad = (TARGET_NORM, TARGET_LOGITS) if index == TARGETS else (index, index)
        values, gradients = [side[of_sum] for side in sums], [side[of_grad] for side in grads]
        rows, columns = (_SideGrads.of(*side) for side in zip(values, gradients, (1, 0), strict=True))
        return cls(rows, columns, _shared_level(*values))

    def write_slopes(self, term: Term, part: slice, scratch: Tensor) -> Tensor:
        """Write the slopes of a block of rows into the memory of the term.

        With a common level l near the levels r of the row and c of the column, one exponential is enough:
        ``exp(v - r) + exp(v - c) = exp(v - l) (exp(l - r) + exp(l - c))``.
        """
        rows, columns, level = self.rows.part(part), self.columns, self.level
        if level is not None and term.rows is term.columns:
            torch.add(rows.factors(term, level), columns.factors(term, level), out=scratch)
            return torch.sub(term.rows, level, out=term.out).exp_().mul_(scratch)
        if not columns.levels.numel():
            return rows.write_slopes(term.rows, term, out=term.out)
        column_slopes = columns.write_slopes(term.columns, term, out=scratch)
        return rows.write_slopes(term.rows, term, out=term.out).add_(column_slopes)


def _shared_level(rows: Tensor, columns: Tensor) -> float | None:
    """Return a common level of the sums of rows and columns.

    None if the sums are too far apart, or if reading them would wait for an accelerator.
    """
    if rows.device.type != "cpu" or not len(columns):
        return None
    sums = torch.cat([rows, columns])
    present = sums[sums > -torch.inf]
    low, high = map(float, present.aminmax()) if len(present) else (0.0, 0.0)
    return high - HEADROOM if high - low <= SPREAD else None


def _target_sums(blocks: Blocks, dim: int) -> tuple[Tensor, Tensor]:
    """Return the mean logits and the norms of the targets along one dimension of a block."""
    top = blocks.scores.amax(dim, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)  # an anchor whose only pair in this block is its positive
    shares = torch.sub(blocks.scores, top, out=blocks.scratch).exp_()
    total = shares.sum(dim)
    logits = shares.mul_(blocks.logits).sum(dim) / total.clamp(min=1.0)  # the largest share is 1
    return logits, total.log_().add_(top.squeeze(dim))


def _log_sums(term: Term, scratch: Tensor, columns_too: bool) -> tuple[Tensor, ...]:
    """Return the log-sum-exps of the rows and columns of a block; they share one exponential if that loses no digits."""
    if not columns_too:
        return (_logsumexp(term.rows, 1, scratch),)
    if term.rows is term.columns and term.rows.device.type == "cpu":
        level = float(term.rows.T.max()) - HEADROOM  # transposed, the block is contiguous; otherwise torch copies it
        if level > -torch.inf:
            torch.sub(term.rows, level, out=scratch).exp_()
            row_sums, column_sums = scratch.sum(1), scratch.sum(0)
            limits = torch.finfo(scratch.dtype)
            if min(float(row_sums.min()), float(column_sums.min())) >= limits.tiny / limits.eps**2:
                return row_sums.log_().add_(level), column_sums.log_().add_(level)
    return _logsumexp(term.rows, 1, scratch), _logsumexp(term.columns, 0, scratch)


def _logsumexp(block: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """Return ``block.logsumexp(dim)`` without a temporary of the block's size."""
    top = block.amax(dim, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)  # -inf - -inf would be nan
    torch.sub(block, top, out=scratch).exp_()
    return scratch.sum(dim).log_().add_(top.squeeze(dim))
