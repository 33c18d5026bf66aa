"""Losses of the anchors by backend "torch" if log-weights are the only treatment of the pairs.

They equal those of `objective.anchor_losses`, in about 40 % of its operations: the number of operations decides the time of a
small batch. With z the logit, b the log-weight, N the negatives of anchor i, and m their mean weight if weights are normalised
and 1 otherwise:

    odds_i = log(sum over j in N of exp(z_ij + b_ij)) - log(m_i) - z_ii
    loss_i = log(1 + exp(odds_i))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.losses.kernels import dense, log_weights
from clip_negatives.losses.kernels.pairs import Inputs, Pairs

# Torch has no public function for this. Without the private one, `bool()` answers False.
functorch_is_active = getattr(torch._C, "_are_functorch_transforms_active", bool)
LINEAR = 40.0  # log(1 + exp(odds)) equals the odds above this, also in float64


class Layout(NamedTuple):
    """Place of the positives in the matrix of pairs, and whether columns are anchors too; see `Pairs`."""

    offset: int
    columns_too: bool


class Losses(NamedTuple):
    """Losses of the anchors, and what their gradient needs."""

    losses: Tensor  # rows and then columns, shape (n,)
    odds: Tensor  # shape (sides, n)
    totals: Tensor  # sums of the exponentials, at least 1, shape (sides, n)
    exponentials: Sequence[Tensor]  # of each side, relative to the largest value of each anchor, shape (B, G)
    dtype: torch.dtype  # of the product of the features


def anchor_losses(by_image: Inputs, by_text: Inputs | None, pairs: Pairs) -> Tensor:
    """Return the losses of the images and then of the texts; differentiable, shape (n,).

    `by_text` has the texts as rows. If it is None, the texts are the columns of `by_image`. If columns are not anchors either,
    the result is the losses of the images alone.
    """
    losses = _side_losses(by_image, pairs)
    return losses if by_text is None else torch.cat([losses, _side_losses(by_text, pairs.transposed_tables())])


def _side_losses(inputs: Inputs, pairs: Pairs) -> Tensor:
    layout = Layout(pairs.offset, pairs.columns_too)
    weights = mean = None
    if pairs.rows.weighted:
        weights = log_weights.all_pairs(pairs, inputs.precision())
        weights.diagonal(layout.offset)[: len(inputs.x)].fill_(-torch.inf)
        mean = _log_means(weights, layout) if pairs.rows.normalized else None
    # The compiler derives and fuses the gradient itself, and torch.func needs plain operations.
    if torch.compiler.is_compiling() or functorch_is_active():
        return _losses(layout, *inputs, weights, mean).losses
    losses: Tensor = _AnchorLosses.apply(layout, *inputs, weights, mean)
    return losses


class _AnchorLosses(torch.autograd.Function):
    """The losses, with a gradient from the exponentials of the forward pass."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, *inputs: Any) -> Tensor:
        losses, odds, totals, exponentials, ctx.dtype = _losses(layout, *inputs)
        ctx.save_for_backward(*inputs, odds, totals, *exponentials)
        ctx.layout = layout
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # unpacked once, as checkpointing requires
        *inputs, odds, totals = saved[:8]
        layout, wants = ctx.layout, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # the caller asked for a gradient that is differentiable too
            return None, *_differentiable(layout, inputs, wants, grads[0])
        x, y, scale, bias, *_ = inputs
        by_odds = grads[0].view_as(odds) * odds.sigmoid()
        slopes = _slopes(saved[8:], by_odds / totals)
        # The positives in full precision: unlike those of the negatives, their errors do not average out.
        positive, dtype = -by_odds.sum(0).unsqueeze(1), slopes.dtype
        rounded, factor = slopes.to(ctx.dtype), scale.to(dtype)
        x_grad = y_grad = None
        if wants[0] or wants[2]:
            x_grad = (rounded @ y.to(ctx.dtype)).to(dtype).addcmul_(positive, _own(y, layout, len(x)).to(dtype))
        if wants[1]:
            y_grad = (rounded.T @ x.to(ctx.dtype)).to(dtype)
            _own(y_grad, layout, len(x)).addcmul_(positive, x.to(dtype))
        return (
            None,
            (x_grad * factor).to(x.dtype) if wants[0] else None,
            (y_grad * factor).to(y.dtype) if wants[1] else None,
            (x_grad * x).sum().to(scale.dtype).view(scale.shape) if wants[2] else None,
            (slopes.sum() + positive.sum()).to(bias.dtype).view(bias.shape) if wants[3] else None,
            slopes if wants[4] else None,
            -by_odds if wants[5] else None,
        )


def _slopes(exponentials: Sequence[Tensor], factors: Tensor) -> Tensor:
    """Return the derivatives with respect to the logits of the negatives, shape (B, G)."""
    slopes = exponentials[0] * factors[0].unsqueeze(1)
    return slopes if len(exponentials) == 1 else slopes.addcmul_(exponentials[1], factors[1])


def _losses(
    layout: Layout, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, weights: Tensor | None, mean: Tensor | None
) -> Losses:
    """Return the losses; None instead of `weights` and `mean` is 0."""
    inputs = Inputs(x, y, scale, bias)
    dtype = inputs.precision()
    positive = scale.to(dtype).flatten() * (x.to(dtype) * _own(y, layout, len(x)).to(dtype)).sum(1)
    if bias is not None:
        positive = positive + bias.to(dtype).flatten()
    logits = dense.product(inputs)
    if weights is None:
        values = logits.to(dtype)
        values.diagonal(layout.offset)[: len(x)].fill_(-torch.inf)
    else:
        values = logits + weights
    sides = [_exponentials(values, dim) for dim in (1, 0)[: 1 + layout.columns_too]]
    exponentials, tops, totals = zip(*sides, strict=True)
    total = torch.stack(totals)
    odds = total.log() + torch.stack(tops) - positive
    if mean is not None:
        odds = odds - mean
    return Losses(F.softplus(odds, threshold=LINEAR).flatten(), odds, total, exponentials, logits.dtype)


def _exponentials(values: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``exp(values - top)``, the largest value `top` along a dimension, and the sum of the exponentials.

    Without negatives all values are -inf. The largest value is then the lowest finite number and the sum is 1, so that neither
    the loss nor its gradients are nan.
    """
    top = values.detach().amax(dim, keepdim=True).clamp_(min=torch.finfo(values.dtype).min)
    exponentials = (values - top).exp_()
    return exponentials, top.squeeze(dim), exponentials.sum(dim).clamp(min=1.0)


def _log_means(weights: Tensor, layout: Layout) -> Tensor:
    """Return the logarithm of the mean weight of each anchor's negatives, shape (sides, n)."""
    kept = (weights > -torch.inf).to(weights.dtype)
    means = []
    for dim in (1, 0)[: 1 + layout.columns_too]:
        _, top, total = _exponentials(weights, dim)
        means.append(top + (total / kept.sum(dim).clamp(min=1.0)).log())
    # Without negatives, stay far above the lowest number: the odds subtract this from it.
    return torch.stack(means).clamp(min=torch.finfo(weights.dtype).min / 2)


def _own(y: Tensor, layout: Layout, n: int) -> Tensor:
    """Return the columns of the positives."""
    return y if len(y) == n else y[layout.offset : layout.offset + n]


def _differentiable(layout: Layout, inputs: Any, wants: Sequence[bool], grad: Tensor) -> list[Tensor | None]:
    """Return the gradients of the inputs with a graph of their own, for gradients of gradients."""
    # Views: if y is a function of x, the gradient of x shall not contain that of y.
    views: list[Any] = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [view for view, is_wanted in zip(views, wants, strict=True) if is_wanted]
    losses = _losses(layout, *views).losses
    grads = iter(torch.autograd.grad(losses, wanted, grad, create_graph=True))
    return [next(grads) if is_wanted else None for is_wanted in wants]
