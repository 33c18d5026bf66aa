"""Backend "chunked": the same loss on any device without a B x G matrix of logits or of weights.

Rows are taken some at a time. The forward pass keeps the log-sum-exp of the negatives of each row and column; the backward
pass computes each block of logits again and turns it into gradients at once. One block serves rows and columns, so a step
costs four matrix products where open_clip's costs six, and O(chunk * G) memory where open_clip's costs O(B * G) several times.

A block holds negatives only: what belongs to a positive, and what normalises weights, is a vector and is added outside.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import log_weights

BLOCK_BYTES = 16 * 2**20
"""Size of a block of logits if no chunk size is given: large enough for full speed, small enough to stay out of the way."""


def both(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, terms: LossTerms | None, *, chunk_size: int | None = None
) -> Tensor:
    """Return half the mean cross-entropy of the rows plus half that of the columns."""
    loss: Tensor = _InfoNCE.apply(x, y, scale, bias, _Blocks(terms, terms, 0, True, True, _rows_at_once(y, chunk_size)))
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
    blocks = _Blocks(x_terms, y_terms, offset, images_are_rows, False, _rows_at_once(y, chunk_size))
    loss: Tensor = _InfoNCE.apply(x, y, scale, bias, blocks)
    return loss


def _rows_at_once(y: Tensor, chunk_size: int | None) -> int:
    return chunk_size or max(16, BLOCK_BYTES // (torch.finfo(_dtype(y, y)).bits // 8 * len(y)))


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """Cut rows x columns into blocks of rows; say how their pairs are weighted and where their positives are."""

    x_terms: LossTerms | None
    y_terms: LossTerms | None
    offset: int
    images_are_rows: bool
    columns_too: bool
    chunk: int

    @property
    def normalize(self) -> bool:
        return self.x_terms is not None and self.x_terms.normalize

    def positives(self, block: Tensor, start: int) -> Tensor:
        """Return a view of the positives of the block whose first row is `start`."""
        return block.diagonal(start + self.offset)[: len(block)]

    def logits(
        self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (rows, logits of these rows with every column, scratch of their shape); both are overwritten by the next."""
        dtype = _dtype(x, y)
        columns = y.to(dtype).T
        # One pair of buffers for all blocks: fresh ones would have their pages mapped in anew every time.
        buffers = torch.empty(2, min(self.chunk, len(x)), len(y), dtype=dtype, device=x.device)
        for start in range(0, len(x), self.chunk):
            part = slice(start, min(start + self.chunk, len(x)))
            logits, scratch = buffers[:, : part.stop - start]
            torch.mm(scale.to(dtype) * x[part].to(dtype), columns, out=logits)
            if bias is not None:
                logits += bias.to(dtype)
            yield part, logits, scratch

    def weights(self, part: slice, like: Tensor) -> Tensor | None:
        """Return b of some rows with every column, -inf for the positives; None without weights."""
        if self.x_terms is None or self.y_terms is None:
            return None
        some = self.x_terms.map_samples(operator.itemgetter(part))
        found = log_weights.block(some, self.y_terms, like.dtype, images_are_rows=self.images_are_rows)
        self.positives(found, part.start).fill_(-torch.inf)
        return found


class _LogSums:
    """Gather the log-sum-exp of rows and, carried from block to block, of columns."""

    def __init__(self, blocks: _Blocks, x: Tensor, y: Tensor) -> None:
        empty = torch.full((len(x) + len(y),), -torch.inf, dtype=_dtype(x, y), device=x.device)
        self.row, self.column = empty[: len(x)], empty[len(x) :]
        self.columns_too = blocks.columns_too

    def add(self, part: slice, block: Tensor, scratch: Tensor) -> None:
        self.row[part] = _logsumexp(block, 1, scratch)
        if self.columns_too:
            torch.logaddexp(self.column, _logsumexp(block, 0, scratch), out=self.column)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, blocks: _Blocks) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            negatives, weighed = _LogSums(blocks, x, y), _LogSums(blocks, x, y)
            positive = torch.empty_like(negatives.row)
            row_kept, column_kept = torch.zeros_like(negatives.row), torch.zeros_like(negatives.column)
            for part, logits, scratch in blocks.logits(x, y, scale, bias):
                positive[part] = blocks.positives(logits, part.start)
                weights = _keep_negatives(blocks, part, logits)
                negatives.add(part, logits, scratch)
                if weights is not None and blocks.normalize:
                    weighed.add(part, weights, scratch)
                    torch.gt(weights, -torch.inf, out=scratch)
                    row_kept[part] = scratch.sum(1)
                    column_kept += scratch.sum(0)
            row_loss, row_level, slope = _close(negatives.row, weighed.row, row_kept, positive, blocks.normalize)
            loss, column_level = row_loss.mean(), None
            if blocks.columns_too:
                column = _close(negatives.column, weighed.column, column_kept, positive, blocks.normalize)
                column_loss, column_level, column_slope = column
                loss, slope = (loss + column_loss.mean()) / 2, slope + column_slope
        ctx.save_for_backward(x, y, scale, bias, row_level, column_level, slope)
        ctx.blocks = blocks
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, row_level, column_level, slope = ctx.saved_tensors
        wants_x, wants_y, wants_scale, wants_bias = ctx.needs_input_grad[:4]
        with torch.autocast(x.device.type, enabled=False):
            columns = y.to(slope.dtype)
            x_grad = torch.empty(x.shape, dtype=slope.dtype, device=x.device) if wants_x or wants_scale else None
            y_grad = torch.zeros(y.shape, dtype=slope.dtype, device=x.device) if wants_y else None
            bias_grad = slope.new_zeros(())
            for part, logits, scratch in ctx.blocks.logits(x, y, scale, bias):
                _keep_negatives(ctx.blocks, part, logits)
                if column_level is not None:
                    torch.sub(logits, column_level, out=scratch).exp_()
                logits.sub_(row_level[part, None]).exp_()
                if column_level is not None:
                    logits += scratch
                ctx.blocks.positives(logits, part.start).copy_(slope[part])
                if x_grad is not None:
                    torch.mm(logits, columns, out=x_grad[part])
                if y_grad is not None:
                    y_grad.addmm_(logits.T, x[part].to(slope.dtype))
                if wants_bias:
                    bias_grad += logits.sum()
            factor = outer[0].to(slope.dtype) / (len(x) * (1 if column_level is None else 2))
            # Logits are linear in the scale, so its gradient needs no pass of its own.
            scale_grad = (x_grad * x).sum() * factor if wants_scale and x_grad is not None else None
            factor_of_features = factor * scale.to(slope.dtype)
            return (
                x_grad.mul_(factor_of_features).to(x.dtype) if wants_x and x_grad is not None else None,
                y_grad.mul_(factor_of_features).to(y.dtype) if y_grad is not None else None,
                scale_grad.to(scale.dtype).view(scale.shape) if scale_grad is not None else None,
                (bias_grad * factor).to(bias.dtype).view(bias.shape) if wants_bias else None,
                None,
            )


def _keep_negatives(blocks: _Blocks, part: slice, logits: Tensor) -> Tensor | None:
    """Add the log-weights to a block of logits and -inf to its positives, in place; return the log-weights."""
    weights = blocks.weights(part, logits)
    if weights is None:
        blocks.positives(logits, part.start).fill_(-torch.inf)
    else:
        logits += weights
    return weights


def _close(
    negatives: Tensor, weights: Tensor, kept: Tensor, positive: Tensor, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of each row, the level whose subtraction makes a weighted logit a log-probability, and dL/dpositive."""
    shift = log_weights.mean_one_shift(weights, kept) if normalize else torch.zeros_like(negatives)
    # Negatives over positive: nothing cancels where the loss is small, and -inf, no negative, is a loss of 0.
    odds = negatives - shift - positive
    loss = torch.logaddexp(odds, torch.zeros_like(odds))
    return loss, shift + positive + loss, -torch.sigmoid(odds)


def _dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """Return the precision of products, sums and exponentials: at least float32."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


def _logsumexp(block: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """Return ``block.logsumexp(dim)`` without a temporary of the block's size."""
    top = block.amax(dim, keepdim=True)
    top.masked_fill_(top == -torch.inf, 0.0)  # nothing there: -inf - -inf would not be a number
    torch.sub(block, top, out=scratch).exp_()
    return scratch.sum(dim).log_().add_(top.squeeze(dim))
