"""Backend "chunked": the same loss on any device without a B x B matrix of logits or of weights.

Rows are taken some at a time. The forward pass keeps the log-sum-exp of each row and column; the backward pass computes each
block of logits again and turns it into gradients at once. One block serves rows and columns, so a step costs four matrix
products where open_clip's costs six, and O(chunk * G) memory where open_clip's costs O(B * G) several times over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import log_weights

BLOCK_BYTES = 16 * 2**20
"""Size of a block of logits if no chunk size is given: large enough for full speed, small enough to stay out of the way."""


def chunk_rows(columns: int, chunk_size: int | None) -> int:
    """Return how many rows to take at a time."""
    return chunk_size or max(16, BLOCK_BYTES // (4 * max(columns, 1)))


def both(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, terms: LossTerms | None, *, chunk_size: int | None = None
) -> Tensor:
    """Return half the mean cross-entropy of the rows plus half that of the columns."""
    loss: Tensor = _Both.apply(x, y, scale, bias, terms, chunk_rows(len(y), chunk_size))
    return loss


def rows(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    x_terms: LossTerms | None,
    y_terms: LossTerms | None,
    offset: int,
    *,
    images_are_rows: bool,
    chunk_size: int | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the rows; `images_are_rows` says which way the log-weights are looked up."""
    problem = _Problem(x_terms, y_terms, offset, images_are_rows, chunk_rows(len(y), chunk_size))
    loss: Tensor = _Rows.apply(x, y, scale, bias, problem)
    return loss


class _Problem:
    """Say which weights the blocks of a matrix have and where its positives are."""

    def __init__(
        self, x_terms: LossTerms | None, y_terms: LossTerms | None, offset: int, images_are_rows: bool, chunk: int
    ) -> None:
        self.x_terms, self.y_terms = x_terms, y_terms
        self.offset, self.images_are_rows, self.chunk = offset, images_are_rows, chunk

    def weights(self, start: int, stop: int, like: Tensor) -> Tensor | None:
        """Return b of rows start .. stop with every column, -inf for the positives; None without weights."""
        if self.x_terms is None or self.y_terms is None:
            return None
        some = self.x_terms.map_samples(lambda per_sample: per_sample[start:stop])
        if self.images_are_rows:
            found = log_weights.block(some, self.y_terms, like.dtype)
        else:
            found = log_weights.block(self.y_terms, some, like.dtype).T
        positives(found, start + self.offset).fill_(-torch.inf)
        return found

    @property
    def normalize(self) -> bool:
        return self.x_terms is not None and self.x_terms.normalize


class _Both(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, terms: LossTerms | None, chunk: int
    ) -> Tensor:
        problem = _Problem(terms, terms, 0, True, chunk)
        with torch.autocast(x.device.type, enabled=False):
            shift = _column_shift(problem, x) if problem.normalize else None
            row_lse, column_lse = torch.empty_like(x[:, 0], dtype=_dtype(x)), None
            positive = torch.empty_like(row_lse)
            for start, stop, logits in _blocks(x, y, scale, bias, chunk):
                positive[start:stop] = positives(logits, start)
                by_row, by_column = _add_weights(problem, logits, start, stop, shift)
                row_lse[start:stop] = by_row.logsumexp(1)
                part = by_column.logsumexp(0)
                column_lse = part if column_lse is None else torch.logaddexp(column_lse, part)
            loss = ((row_lse - positive).mean() + (column_lse - positive).mean()) / 2
        ctx.save_for_backward(x, y, scale, bias, row_lse, column_lse, shift)
        ctx.problem = problem
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, row_lse, column_lse, shift = ctx.saved_tensors
        n = len(x)

        def slope(logits: Tensor, start: int, stop: int) -> Tensor:
            by_row, by_column = _add_weights(ctx.problem, logits, start, stop, shift)
            # by_row and by_column are one tensor unless each is normalised for itself.
            columns = (by_column - column_lse).exp_()
            total = by_row.sub_(row_lse[start:stop, None]).exp_().add_(columns)
            positives(total, start).sub_(2.0)
            return total.mul_(outer[0] / (2 * n))

        return *_gradients(ctx, x, y, scale, bias, ctx.problem.chunk, slope), None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, problem: _Problem) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            row_lse = torch.empty_like(x[:, 0], dtype=_dtype(x))
            positive = torch.empty_like(row_lse)
            for start, stop, logits in _blocks(x, y, scale, bias, problem.chunk):
                positive[start:stop] = positives(logits, start + problem.offset)
                row_lse[start:stop] = _add_row_weights(problem, logits, start, stop).logsumexp(1)
            loss = (row_lse - positive).mean()
        ctx.save_for_backward(x, y, scale, bias, row_lse)
        ctx.problem = problem
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, row_lse = ctx.saved_tensors

        def slope(logits: Tensor, start: int, stop: int) -> Tensor:
            total = _add_row_weights(ctx.problem, logits, start, stop).sub_(row_lse[start:stop, None]).exp_()
            positives(total, start + ctx.problem.offset).sub_(1.0)
            return total.mul_(outer[0] / len(x))

        return *_gradients(ctx, x, y, scale, bias, ctx.problem.chunk, slope), None


def positives(block: Tensor, first: int) -> Tensor:
    """Return a view of the entries of `block` at (i, first + i)."""
    return block.diagonal(first)[: len(block)]


def _dtype(x: Tensor) -> torch.dtype:
    """Return the precision of sums and exponentials: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def _blocks(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, chunk: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, logits of these rows with every column)."""
    dtype = _dtype(x)
    columns = y.to(dtype).T
    for start in range(0, len(x), chunk):
        stop = min(start + chunk, len(x))
        logits = (scale.to(dtype) * x[start:stop].to(dtype)) @ columns
        yield start, stop, logits if bias is None else logits.add_(bias.to(dtype))


def _column_shift(problem: _Problem, x: Tensor) -> Tensor:
    """Return what normalises the weights of each column, which needs all rows before any block is used."""
    total = x.new_full((len(x),), -torch.inf, dtype=_dtype(x))
    kept = x.new_zeros(len(x), dtype=torch.int64)
    for start in range(0, len(x), problem.chunk):
        weights = problem.weights(start, min(start + problem.chunk, len(x)), total)
        if weights is not None:
            total = torch.logaddexp(total, weights.logsumexp(0))
            kept += weights.isfinite().sum(0)
    return (total - kept.to(total.dtype).log()).masked_fill(kept == 0, 0.0)


def _add_row_weights(problem: _Problem, logits: Tensor, start: int, stop: int) -> Tensor:
    """Add the log-weights, normalised by row, to the incorrect pairs of a block of logits, in place."""
    weights = problem.weights(start, stop, logits)
    if weights is None:
        return logits
    if problem.normalize:
        weights = weights - log_weights.mean_one_shift(weights, dim=1)[:, None]
    positives(weights, start + problem.offset).zero_()
    return logits.add_(weights)


def _add_weights(
    problem: _Problem, logits: Tensor, start: int, stop: int, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the weighted logits of a block for the sums over rows and for those over columns; one tensor if equal."""
    weights = problem.weights(start, stop, logits)
    if weights is None:
        return logits, logits
    if shift is None:
        positives(weights, start).zero_()
        weighted = logits.add_(weights)
        return weighted, weighted
    by_column = weights - shift
    by_row = weights.sub_(log_weights.mean_one_shift(weights, dim=1)[:, None])
    positives(by_column, start).zero_()
    positives(by_row, start).zero_()
    return by_row.add_(logits), by_column.add_(logits)


def _gradients(
    ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, chunk: int, slope: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to x, y, scale and bias from dL/dlogits, which ``slope`` makes block by block."""
    wants_x, wants_y, wants_scale, wants_bias = ctx.needs_input_grad[:4]
    dtype = _dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        columns, factor = y.to(dtype), scale.to(dtype)
        x_grad = torch.zeros(x.shape, dtype=dtype, device=x.device) if wants_x or wants_scale else None
        y_grad = torch.zeros(y.shape, dtype=dtype, device=x.device) if wants_y else None
        bias_grad = torch.zeros((), dtype=dtype, device=x.device)
        for start, stop, logits in _blocks(x, y, scale, bias, chunk):
            slopes = slope(logits, start, stop)
            if x_grad is not None:
                torch.mm(slopes, columns, out=x_grad[start:stop])
            if y_grad is not None:
                y_grad.addmm_(slopes.T, x[start:stop].to(dtype))
            if wants_bias:
                bias_grad += slopes.sum()
        # Logits are linear in scale: dL/dscale needs no pass of its own.
        scale_grad = (x_grad * x.to(dtype)).sum() if wants_scale and x_grad is not None else None
        return (
            (x_grad * factor).to(x.dtype) if wants_x and x_grad is not None else None,
            y_grad.mul_(factor).to(y.dtype) if y_grad is not None else None,
            scale_grad.to(scale.dtype).view(scale.shape) if scale_grad is not None else None,
            bias_grad.to(bias.dtype).view(bias.shape) if wants_bias and bias is not None else None,
        )
