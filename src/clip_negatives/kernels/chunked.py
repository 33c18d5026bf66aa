"""Backend "chunked": the same loss on any device without a B x G matrix of logits or of weights.

Rows are taken some at a time. The forward pass keeps the log-sum-exp of the negatives of each row and column; the
backward pass computes each block of logits again and turns it into gradients at once. One block serves rows and
columns, so a step costs four matrix products where open_clip's costs six, and O(chunk * G) memory where open_clip's
costs O(B * G) several times.

A block holds negatives only: what belongs to a positive, and what normalises weights, is a vector and is added outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels.blocks import LogSums, Pairs, rows_at_once


def both(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, terms: LossTerms | None, *, chunk_size: int | None = None
) -> Tensor:
    """Return half the mean cross-entropy of the rows plus half that of the columns."""
    loss: Tensor = _InfoNCE.apply(x, y, scale, bias, Pairs(terms, terms, 0, True, True, rows_at_once(y, chunk_size)))
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
    pairs = Pairs(x_terms, y_terms, offset, images_are_rows, False, rows_at_once(y, chunk_size))
    loss: Tensor = _InfoNCE.apply(x, y, scale, bias, pairs)
    return loss


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            negatives, weighed = LogSums(pairs, x, y), LogSums(pairs, x, y)
            positive = torch.empty_like(negatives.row)
            for block in pairs.blocks(x, y, scale, bias):
                positive[block.part] = block.positive
                negatives.add(block.part, block.negatives, block.scratch)
                if block.weights is not None and pairs.normalize:
                    weighed.add(block.part, block.weights, block.scratch)
                    weighed.count(block.part, block.weights, block.scratch)
            shift = pairs.shift(weighed.row, weighed.row_kept)
            row_loss, row_level, slope = _close(negatives.row, shift, positive)
            loss, column_level = row_loss.mean(), None
            if pairs.columns_too:
                shift = pairs.shift(weighed.column, weighed.column_kept)
                column_loss, column_level, column_slope = _close(negatives.column, shift, positive)
                loss, slope = (loss + column_loss.mean()) / 2, slope + column_slope
        ctx.save_for_backward(x, y, scale, bias, row_level, column_level, slope)
        ctx.pairs = pairs
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
            for part, slopes, _, _, scratch in ctx.pairs.blocks(x, y, scale, bias):
                if column_level is not None:
                    torch.sub(slopes, column_level, out=scratch).exp_()
                slopes.sub_(row_level[part, None]).exp_()
                if column_level is not None:
                    slopes += scratch
                ctx.pairs.positives(slopes, part.start).copy_(slope[part])
                if x_grad is not None:
                    torch.mm(slopes, columns, out=x_grad[part])
                if y_grad is not None:
                    y_grad.addmm_(slopes.T, x[part].to(slope.dtype))
                if wants_bias:
                    bias_grad += slopes.sum()
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


def _close(negatives: Tensor, shift: Tensor, positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each row the loss, the level that makes a weighted logit a log-probability, and dL/dpositive."""
    # Negatives over positive: nothing cancels where the loss is small, and -inf, no negative, is a loss of 0.
    odds = negatives - shift - positive
    loss = torch.logaddexp(odds, torch.zeros_like(odds))
    return loss, shift + positive + loss, -torch.sigmoid(odds)
