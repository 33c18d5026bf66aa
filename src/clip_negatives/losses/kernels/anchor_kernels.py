"""Triton kernels for vectors of anchors (sums, losses, gradients), and for wide tables.

Plain torch would launch dozens of small kernels for these vectors, and launches take most of the time of a small batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NOTHING = tl.constexpr(-1.0e30)  # replaces the maximum -inf of no pairs
TINY = tl.constexpr(1.1754943508222875e-38)


# fmt: off
@triton.jit
def wide_table_kernel(table, labels, top, out, n, width, down, across, BLOCK: tl.constexpr):
    """Write ``out[k, j] = (table[k, labels[j]] - top) * log2(e)``; program (k, block of samples)."""
    row, samples = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = samples < n
    entry = tl.load(table + row * down + tl.load(labels + samples, mask=valid, other=0) * across, mask=valid, other=0.0)
    entry = (entry - _finite_top(top)) * LOG2_E
    tl.store(out + row * width + samples, entry.to(out.dtype.element_ty), mask=valid)


@triton.jit
def totals_kernel(
    tile_sums, shifts, image_top, text_top, out, n, next_out, n_tiles, next_tile, next_part, shift_step, shift_tile, shift_part,
    IMPORTANCE: tl.constexpr, GROUPS: tl.constexpr, COUNT: tl.constexpr, TARGETS: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr, TILES: tl.constexpr,
):
    """Write the sums of the anchors, ``out[part, anchor]``, from those of the tiles, ``tile_sums[part, tile, anchor]``.

    Each program adds up one row or column of tiles, for BLOCK anchors. With ADD, it adds the result to the sums in `out`. Parts
    that are not requested get the value of an empty sum.
    """
    program = tl.program_id(0)
    anchors = program * BLOCK + tl.arange(0, BLOCK)
    valid = anchors < n
    tile_sums += anchors
    shifts += program * shift_step
    out += anchors
    top = _finite_top(image_top) + _finite_top(text_top)
    for part in tl.static_range(3):
        if (part == 0) or (IMPORTANCE if part == 1 else GROUPS):
            level, norm, _ = _log_total(tile_sums + part * next_part, tile_sums, shifts + part * shift_part,
                                        n_tiles, next_tile, shift_tile, False, BLOCK, TILES)
            total = (tl.log2(norm) + level) * LN_2
            if part < 2:
                total += top
            if ADD:
                total = _logaddexp(total, tl.load(out + part * next_out, mask=valid, other=0.0))
            tl.store(out + part * next_out, total, mask=valid)
        elif not ADD:
            tl.store(out + part * next_out, tl.full((BLOCK,), float("-inf"), tl.float32), mask=valid)
    for part in tl.static_range(3, 6):
        if COUNT if part == 5 else GROUPS:
            total = _total(tile_sums + part * next_part, n_tiles, next_tile, BLOCK, TILES)
            if ADD:
                total += tl.load(out + part * next_out, mask=valid, other=0.0)
            tl.store(out + part * next_out, total, mask=valid)
        elif not ADD:
            tl.store(out + part * next_out, tl.zeros((BLOCK,), tl.float32), mask=valid)
    means, norms = out + 6 * next_out, out + 7 * next_out
    if TARGETS:
        level, norm, mean = _log_total(tile_sums + 7 * next_part, tile_sums + 6 * next_part, shifts + 7 * shift_part,
                                       n_tiles, next_tile, shift_tile, True, BLOCK, TILES)
        if ADD:
            previous = tl.load(norms, mask=valid, other=0.0) * LOG2_E
            higher = tl.maximum(level, previous)
            own, more = tl.exp2(level - higher), tl.exp2(previous - higher)
            mean = mean * own + tl.load(means, mask=valid, other=0.0) * more
            level, norm = higher, norm * own + more
        tl.store(means, mean / tl.maximum(norm, TINY), mask=valid)
        tl.store(norms, (tl.log2(norm) + level) * LN_2, mask=valid)
    elif not ADD:
        tl.store(means, tl.zeros((BLOCK,), tl.float32), mask=valid)
        tl.store(norms, tl.full((BLOCK,), float("-inf"), tl.float32), mask=valid)


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
    top = _finite_top(image_top) + _finite_top(text_top)
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
def _finite_top(top):
    """Return the largest entry of a table, or 0 without a table or for a table of -inf."""
    value = 0.0
    if top is not None:
        value = tl.load(top)
        value = tl.where(value == float("-inf"), 0.0, value)
    return value


@triton.jit
def _log_total(
    sums, means, shifts, n_tiles, next_tile, shift_tile, MEANS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):
    """Return level, norm and mean of all tiles.

    Their sum is ``2^level * norm``. The mean is the sum of the means of the tiles, each times its tile's part of `norm`.
    """
    level = tl.full((BLOCK,), NOTHING, tl.float32)
    norm, mean = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_tiles, TILES):
        tile = start + tl.arange(0, TILES)
        exists = tile < n_tiles
        at = tile.to(tl.int64)[:, None] * next_tile
        power = tl.load(sums + at, mask=exists[:, None], other=0.0)
        shift = tl.load(shifts + tile * shift_tile, mask=exists, other=0.0)[:, None]
        # The sums of a tile with an infinite shift are logarithms already.
        logs = tl.where(shift == float("inf"), power, tl.log2(power) + shift)
        logs = tl.where(exists[:, None], logs, float("-inf"))
        higher = tl.maximum(level, tl.max(logs, 0))
        shares, kept = tl.exp2(logs - higher[None, :]), tl.exp2(level - higher)
        norm = norm * kept + tl.sum(shares, 0)
        if MEANS:
            mean = mean * kept + tl.sum(shares * tl.load(means + at, mask=exists[:, None], other=0.0), 0)
        level = higher
    return level, norm, mean


@triton.jit
def _total(sums, n_tiles, next_tile, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Return the sum over all tiles."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_tiles, TILES):
        tile = start + tl.arange(0, TILES)
        total += tl.sum(tl.load(sums + tile.to(tl.int64)[:, None] * next_tile, mask=(tile < n_tiles)[:, None], other=0.0), 0)
    return total


@triton.jit
def _logaddexp(left, right):
    """Return ``log(exp(left) + exp(right))``, also where both are -inf."""
    top = tl.maximum(tl.maximum(left, right), NOTHING)
    return top + tl.log(tl.exp(left - top) + tl.exp(right - top))


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
