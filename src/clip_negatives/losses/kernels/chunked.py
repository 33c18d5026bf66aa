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
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.losses.kernels.blocks import Blocks, Term
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import (
    KEPT,
    LOG_SUMS,
    MATE_LOGITS,
    N_MATES,
    NEGATIVES,
    TARGET_LOGITS,
    TARGET_NORM,
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
        row_sums, column_sums = empty_sums(part.stop - part.start, like), empty_sums(columns.shape[1], like)
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
        rows[:, part] = row_sums
        if pairs.columns_too:
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
    rows, columns = (_SumGrads.of(side, grad, dim) for side, grad, dim in zip(sums, grads, (1, 0), strict=True))
    levels = _shared_levels(sums)
    x_grad = x.new_empty(x.shape, dtype=dtype) if wants[0] else None
    y_grad = y.new_zeros(y.shape, dtype=dtype) if wants[1] else None
    blocks = Blocks(inputs, pairs, chunk_size, kept)
    for part in blocks.parts():
        mates = blocks.load(part)
        row_part = rows.part(part)
        terms = blocks.terms(mates)
        slopes = _write_slopes(next(terms), row_part, columns, levels, blocks.scratch)
        if blocks.keeps_logits:
            slopes = slopes.clone()  # the next term overwrites this memory
        for term in terms:
            slopes += _write_slopes(term, row_part, columns, levels, blocks.scratch)
        if pairs.targeted:
            slopes += _write_slopes(blocks.target_term(), row_part, columns, levels, blocks.scratch)
        if mates is not None:
            column_grads = grads.columns[MATE_LOGITS] if pairs.columns_too else 0.0
            slopes += (grads.rows[MATE_LOGITS, part, None] + column_grads) * mates
        if x_grad is not None:
            torch.mm(slopes, blocks.columns, out=x_grad[part])
        if y_grad is not None:
            y_grad.addmm_(slopes.T, x[part].to(dtype))
    return [x_grad, y_grad]


class _SumGrads(NamedTuple):
    """Gradients g of logarithmic sums L as level and sign: ``g exp(v - L) = sign * exp(v - level)`` for a value v of a sum.

    The gradient of `TARGET_LOGITS` has the same form, with scores as values: ``g softmax(score) = g exp(score - TARGET_NORM)``.
    """

    levels: Tensor  # L - log |g|, +inf for empty sums and for g = 0; (4, n) with an axis of size 1 for the other side
    signs: Tensor | None  # in the shape of the levels; None if all are known to be positive

    @classmethod
    def of(cls, sums: Tensor, grads: Tensor, axis: int) -> _SumGrads:
        sums, logarithmic = _logarithmic(sums, TARGET_NORM), _logarithmic(grads, TARGET_LOGITS)
        empty = (sums == -torch.inf) | (logarithmic == 0)
        levels = (sums - logarithmic.abs().log()).masked_fill(empty, torch.inf).unsqueeze(axis + 1)
        # Not on an accelerator: reading the values would wait for it.
        positive = sums.device.type == "cpu" and bool((logarithmic >= 0).all())
        return cls(levels, None if positive else logarithmic.sign().unsqueeze(axis + 1))

    def part(self, rows: slice) -> _SumGrads:
        return self._replace(levels=self.levels[:, rows], signs=None if self.signs is None else self.signs[:, rows])

    def factors(self, term: Term, level: float) -> Tensor:
        """Return the factors that turn ``exp(values - level)``, with one common level, into slopes."""
        factors = (level - self.levels[term.sum]).exp() * term.slope
        return factors if self.signs is None else factors * self.signs[term.sum]

    def write_slopes(self, values: Tensor, term: Term, *, out: Tensor) -> Tensor:
        """Write the slopes of one sum."""
        torch.sub(values, self.levels[term.sum], out=out).exp_()
        if self.signs is not None:
            out *= self.signs[term.sum]
        return out if term.slope == 1.0 else out.mul_(term.slope)


def _logarithmic(sums: Tensor, targets: int) -> Tensor:
    """Return the logarithmic sums, and last, in the place of `TARGETS`, the row `targets`."""
    return torch.cat([sums[:LOG_SUMS], sums[targets, None]])


def _shared_levels(sums: PairSums) -> list[float | None]:
    """Return, for each logarithmic sum, a common level of rows and columns, so that they share one exponential.

    None if the sums are too far apart, or if reading them would wait for an accelerator.
    """
    if sums.rows.device.type != "cpu" or not sums.columns.shape[1]:
        return [None] * (LOG_SUMS + 1)
    levels: list[float | None] = []
    for part in _logarithmic(torch.cat(list(sums), dim=1), TARGET_NORM):
        present = part[part > -torch.inf]
        low, high = (float(present.min()), float(present.max())) if len(present) else (0.0, 0.0)
        levels.append(high - HEADROOM if high - low <= SPREAD else None)
    return levels


def _write_slopes(term: Term, rows: _SumGrads, columns: _SumGrads, levels: list[float | None], scratch: Tensor) -> Tensor:
    """Write the slopes of a sum into the memory of its values.

    With a common level l near the levels r of the row and c of the column, one exponential is enough:
    ``exp(v - r) + exp(v - c) = exp(v - l) (exp(l - r) + exp(l - c))``.
    """
    level = levels[term.sum]
    if level is not None and term.rows is term.columns:
        torch.add(rows.factors(term, level), columns.factors(term, level), out=scratch)
        return term.rows.sub_(level).exp_().mul_(scratch)
    if not columns.levels.numel():
        return rows.write_slopes(term.rows, term, out=term.rows)
    column_slopes = columns.write_slopes(term.columns, term, out=scratch)
    return rows.write_slopes(term.rows, term, out=term.rows).add_(column_slopes)


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
