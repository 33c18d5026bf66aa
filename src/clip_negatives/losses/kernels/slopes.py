"""Triton kernel of the slopes: the derivatives of the loss with respect to the logits, tile by tile."""

from __future__ import annotations

import triton
import triton.language as tl

from clip_negatives.losses.kernels.tile_logits import (
    LOG2_E,
    crosses_edge,
    incorrect_pairs,
    logits_and_weights,
    products,
    split_mates,
    tile_position,
    within_limits,
)


# fmt: off
@triton.jit
def slopes_kernel(
    x, y, scale, bias, image_table, text_table,
    row_image, row_text, row_factors, row_targets, row_groups, row_limits,
    column_image, column_text, column_factors, column_targets, column_groups, column_limits,
    row_levels, row_grads, column_levels, column_grads, out, next_rows, next_columns, width,
    n_rows, n_columns, d, r, t, offset, hardness,
    image_down, image_across, text_down, text_across,
    SIGNS: tl.constexpr, IMPORTANCE: tl.constexpr, COLUMNS: tl.constexpr,
    WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):
    """Write the slopes of each tile to ``out[row, column]``. The rows of `out` have `width` entries: whole tiles.

    Levels are the sums of the forward pass, +inf for an empty sum; grads are the gradients of these sums. Both are
    ``[part, anchor]``, with `next_rows` or `next_columns` entries from part to part. In part 0, the level is already
    ``level - log2(abs(grad))``, which frees registers. With SIGNS, gradients of part 0 can be negative.
    """
    row_tile, column_tile = tile_position(tl.program_id(0), tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN), GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    row_valid, column_valid = rows < n_rows, columns < n_columns
    at_edge = crosses_edge(row_tile, column_tile, n_rows, n_columns, offset, BM, BN)
    z, b = logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, d, r, image_down, image_across, text_down, text_across,
        WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR)
    weight = b
    steepness = 1.0
    if hardness is not None:
        weight += hardness * z
        steepness += hardness
    total = tl.exp2(z + weight - tl.load(row_levels + rows, mask=row_valid, other=float("inf"))[:, None]) * steepness
    if SIGNS:
        total *= _sign(row_grads + rows, row_valid)[:, None]
    if IMPORTANCE:
        level, grad = row_levels + next_rows + rows, row_grads + next_rows + rows
        total += _slopes(weight, level, grad, row_valid, 1) * hardness
    if row_limits is not None:  # rows and columns keep different pairs
        pairs = incorrect_pairs(rows, columns, n_rows, n_columns, offset)
        total = tl.where(within_limits(pairs, z, row_limits + rows, row_valid, 1), total, 0.0)
    if COLUMNS:
        level, grad = column_levels + columns, column_grads + columns
        column_part = tl.exp2(z + weight - tl.load(level, mask=column_valid, other=float("inf"))[None, :]) * steepness
        if SIGNS:
            column_part *= _sign(grad, column_valid)[None, :]
        if IMPORTANCE:
            column_part += _slopes(weight, level + next_columns, grad + next_columns, column_valid, 0) * hardness
        if row_limits is not None:
            pairs = incorrect_pairs(rows, columns, n_rows, n_columns, offset)
            column_part = tl.where(within_limits(pairs, z, column_limits + columns, column_valid, 0), column_part, 0.0)
        total += column_part
    if row_targets is not None:
        scores = products(row_targets, column_targets, rows, columns, n_rows, n_columns, t, PRECISION, BM, BN, BR) * LOG2_E
        level, grad = row_levels + 7 * next_rows + rows, row_grads + 6 * next_rows + rows
        total += _slopes(scores, level, grad, row_valid, 1)
        if COLUMNS:
            level, grad = column_levels + 7 * next_columns + columns, column_grads + 6 * next_columns + columns
            total += _slopes(scores, level, grad, column_valid, 0)
    if row_groups is not None:
        pairs = incorrect_pairs(rows, columns, n_rows, n_columns, offset)
        negative, mates = split_mates(pairs, row_groups, column_groups, rows, columns, n_rows, n_columns)
        level, grad = row_levels + 2 * next_rows + rows, row_grads + 2 * next_rows + rows
        mate_part = _slopes(z, level, grad, row_valid, 1) + tl.load(grad + next_rows, mask=row_valid, other=0.0)[:, None]
        if COLUMNS:
            level, grad = column_levels + 2 * next_columns + columns, column_grads + 2 * next_columns + columns
            mate_part += _slopes(z, level, grad, column_valid, 0)
            mate_part += tl.load(grad + next_columns, mask=column_valid, other=0.0)[None, :]
        total = tl.where(negative, total, tl.where(mates, mate_part, 0.0))
    elif at_edge:
        total = tl.where(incorrect_pairs(rows, columns, n_rows, n_columns, offset), total, 0.0)
    tl.store(out + (rows[:, None] * width + columns[None, :]), total.to(out.dtype.element_ty))


@triton.jit
def _sign(grad, valid):
    """Return the signs of the gradients of part 0."""
    return tl.where(tl.load(grad, mask=valid, other=0.0) < 0, -1.0, 1.0)


@triton.jit
def _slopes(values, level, grad, valid, AXIS: tl.constexpr):
    """Return the derivatives of a log-sum-exp with respect to its values, times the gradient of the sum."""
    level = tl.expand_dims(tl.load(level, mask=valid, other=float("inf")), AXIS)
    grad = tl.expand_dims(tl.load(grad, mask=valid, other=0.0), AXIS)
    return tl.exp2(values - level) * grad
