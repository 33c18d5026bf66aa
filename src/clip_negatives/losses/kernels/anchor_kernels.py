"""Triton kernels for vectors of anchors: losses, levels and gradients.

Plain torch would launch dozens of small kernels for these vectors, and launches take most of the time of a small batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clip_negatives.losses.kernels.wide_tables import finite_top

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
TINY = tl.constexpr(1.1754943508222875e-38)


# fmt: off
@triton.jit
def losses_kernel(
    x, y, scale, bias, sums, losses, shares, n, n_anchors, own, d, log_alpha,
    COLUMNS: tl.constexpr, NORMALIZED: tl.constexpr, DECOUPLED: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr,
):
    """Write the loss of each anchor, and its share: the derivative of the loss with respect to ``negatives - positive``.

    The positive of row i of `x` is row ``own + i`` of `y`. Anchors are the n rows and, with COLUMNS, then as many columns.
    """
    anchors = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = anchors < n
    rows = tl.where(valid, anchors, 0).to(tl.int64)
    positive = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, d, BK):
        k = start + tl.arange(0, BK)
        inside = (k < d)[None, :]
        left = tl.load(x + rows[:, None] * d + k[None, :], mask=inside, other=0.0).to(tl.float32)
        right = tl.load(y + (own + rows)[:, None] * d + k[None, :], mask=inside, other=0.0).to(tl.float32)
        positive += tl.sum(left * right, 1)
    positive *= tl.load(scale).to(tl.float32)
    if bias is not None:
        positive += tl.load(bias).to(tl.float32)
    _store_losses(sums, losses, shares, positive, anchors, valid, n_anchors, log_alpha, NORMALIZED, DECOUPLED)
    if COLUMNS:
        _store_losses(sums, losses, shares, positive, n + anchors, valid, n_anchors, log_alpha, NORMALIZED, DECOUPLED)


@triton.jit
def levels_kernel(
    sums, shares, upstream, next_upstream, largest, image_top, text_top, levels, grads, factor, n, steepness,
    UNIFORM: tl.constexpr, IMPORTANCE: tl.constexpr, BLOCK: tl.constexpr,
):
    """Write levels and scaled gradients for `slopes_kernel`, and the factor that the gradients are divided by.

    The gradient of an anchor's negatives is ``upstream * share``. With UNIFORM, `upstream` has one value and `largest` is the
    largest share. Otherwise, `largest` is the largest absolute gradient.
    """
    anchors = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = anchors < n
    unit = tl.load(largest) * steepness
    if UNIFORM:
        first = tl.load(upstream).to(tl.float32)
        unit = tl.maximum(unit * tl.abs(first), TINY) * tl.where(first < 0, -1.0, 1.0)
    else:
        unit = tl.maximum(unit, TINY)
    tl.store(factor, unit)
    top = finite_top(image_top) + finite_top(text_top)
    grad = _negatives_grad(upstream, next_upstream, shares, anchors, valid, UNIFORM) / unit
    total = tl.load(sums + anchors, mask=valid, other=0.0)
    level = tl.where(total == float("-inf"), float("inf"), (total - top) * LOG2_E)
    tl.store(levels + anchors, level - tl.log2(tl.abs(grad)), mask=valid)
    tl.store(grads + anchors, grad, mask=valid)
    if IMPORTANCE:
        total = tl.load(sums + n + anchors, mask=valid, other=0.0)
        tl.store(levels + n + anchors, tl.where(total == float("-inf"), float("inf"), (total - top) * LOG2_E), mask=valid)
        tl.store(grads + n + anchors, -grad, mask=valid)


@triton.jit
def gradients_kernel(
    products, features, partners, scale, shares, upstream, next_upstream, factor, out, dots,
    n, d, n_positives, to_anchor, to_partner,
    COLUMNS: tl.constexpr, UNIFORM: tl.constexpr, BLOCK: tl.constexpr, BK: tl.constexpr,
):
    """Write the gradients of the features: ``scale * (factor * products + gradient of the positives)``.

    If anchor ``i + to_anchor`` exists, row i is in its positive pair; the other sample is row ``i + to_partner`` of `partners`.
    If requested, `dots` gets each feature's product with its gradient before the scale. Their sum is the scale's gradient.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = rows < n
    anchors = rows + to_anchor
    has_positive = valid & (anchors >= 0) & (anchors < n_positives)
    positive = -_negatives_grad(upstream, next_upstream, shares, anchors, has_positive, UNIFORM)
    if COLUMNS:
        positive -= _negatives_grad(upstream, next_upstream, shares, n_positives + anchors, has_positive, UNIFORM)
    own, other = rows.to(tl.int64)[:, None] * d, tl.where(has_positive, rows + to_partner, 0).to(tl.int64)[:, None] * d
    unit, size = tl.load(factor), tl.load(scale).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, d, BK):
        k = start + tl.arange(0, BK)[None, :]
        inside = valid[:, None] & (k < d)
        grad = tl.load(products + own + k, mask=inside, other=0.0) * unit
        partner = tl.load(partners + other + k, mask=has_positive[:, None] & (k < d), other=0.0).to(tl.float32)
        grad += positive[:, None] * partner
        tl.store(out + own + k, (grad * size).to(out.dtype.element_ty), mask=inside)
        if dots is not None:
            total += tl.sum(grad * tl.load(features + own + k, mask=inside, other=0.0).to(tl.float32), 1)
    if dots is not None:
        tl.store(dots + rows, total, mask=valid)


@triton.jit
def _store_losses(
    sums, losses, shares, positive, anchors, valid, n_anchors, log_alpha, NORMALIZED: tl.constexpr, DECOUPLED: tl.constexpr,
):
    """Write the losses and shares of one side."""
    odds = tl.load(sums + anchors, mask=valid, other=0.0) - positive
    if NORMALIZED:
        importance = tl.load(sums + n_anchors + anchors, mask=valid, other=0.0)
        kept = tl.load(sums + 5 * n_anchors + anchors, mask=valid, other=0.0)
        odds -= tl.where(kept == 0, 0.0, importance - tl.log(tl.maximum(kept, 1.0)))
    if DECOUPLED:  # an anchor without negatives contributes 0
        empty = odds == float("-inf")
        loss, share = tl.where(empty, 0.0, odds), tl.where(empty, 0.0, 1.0)
    else:
        odds -= log_alpha
        small = tl.exp(-tl.abs(odds))
        # log1p(small), exact also where 1 + small rounds small off
        rounded = 1.0 + small
        log = tl.where(rounded == 1.0, small, tl.log(rounded) * small / tl.where(rounded == 1.0, 1.0, rounded - 1.0))
        loss, share = tl.where(odds > 0, odds, 0.0) + log + log_alpha, tl.where(odds > 0, 1.0, small) / rounded
    tl.store(losses + anchors, loss, mask=valid)
    tl.store(shares + anchors, share, mask=valid)


@triton.jit
def _negatives_grad(upstream, next_upstream, shares, anchors, valid, UNIFORM: tl.constexpr):
    """Return the gradients of the sums of the negatives."""
    share = tl.load(shares + anchors, mask=valid, other=0.0)
    if UNIFORM:
        grad = tl.load(upstream).to(tl.float32)
    else:
        grad = tl.load(upstream + anchors * next_upstream, mask=valid, other=0.0).to(tl.float32)
    return grad * share
