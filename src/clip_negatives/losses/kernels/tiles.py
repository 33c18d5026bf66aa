"""Triton kernels over tiles of the matrix of all pairs. They write the sums of each tile, or the slopes (dL/dlogits).

* Base 2: logits, tables, limits and levels are in units of log(2), for ``exp2``.
* Range: the values of a tile are shifted so that the largest becomes ``2^HEADROOM``. Rows and columns then share one
  exponential for each pair, with room for small values. If the sum of a row or column still underflows, the tile is computed
  again, with the maximum of each row and column.
* No atomics: other code adds up the sums of the tiles. Arguments that are None are compiled away.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clip_negatives.losses.kernels.tile_logits import logits_and_weights, pair_masks, tile_position, within_limits

HEADROOM = tl.constexpr(100.0)
LEAST = tl.constexpr(2.0**-90)  # below this, a sum may have lost values to underflow in float32
NOTHING = tl.constexpr(-1.0e30)  # replaces the maximum -inf of a tile without pairs
LN_2 = tl.constexpr(0.6931471805599453)


# fmt: off
@triton.jit
def sums_kernel(
    x, y, scale, bias, image_table, text_table,
    row_image, row_text, row_factors, row_groups, row_limits,
    column_image, column_text, column_factors, column_groups, column_limits,
    row_sums, column_sums, shifts, n_rows, n_columns, first_row, d, r, offset, hardness,
    image_down, image_across, text_down, text_across,
    LOGS: tl.constexpr, COUNT: tl.constexpr, IMPORTANCE: tl.constexpr, COLUMNS: tl.constexpr,
    WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):
    """Write the requested parts of `PairSums`, over the rows and over the columns of each tile.

    The outputs are ``row_sums[part, column tile, row]`` and ``column_sums[part, row tile, column]``, float32, with rows and
    columns rounded up to whole tiles. For a logarithmic part, they hold sums of powers of two, and the logarithm is
    ``log2(sum) + shifts[part, row tile, column tile]``: logarithms in the tile would take longer than all its exponentials.

    An infinite shift marks a tile with underflow. A second launch with LOGS computes only these tiles, and writes logarithms.
    One kernel for both cases would reserve registers for the rare case.
    """
    n_row_tiles, n_column_tiles = tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN)
    row_tile, column_tile = tile_position(n_row_tiles, n_column_tiles, GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    row_valid, column_valid = rows < n_rows, columns < n_columns
    row_out = row_sums + column_tile.to(tl.int64) * n_row_tiles * BM + rows
    column_out = column_sums + row_tile.to(tl.int64) * n_column_tiles * BN + columns
    shift_out = shifts + row_tile * n_column_tiles + column_tile
    # Strides between parts.
    n_tiles = n_row_tiles.to(tl.int64) * n_column_tiles
    next_rows, next_columns = n_tiles * BM, n_tiles * BN
    if LOGS and not _has_underflow(shift_out, n_tiles, IMPORTANCE, row_groups is not None):
        return
    z, b = logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, first_row, d, r, image_down, image_across, text_down, text_across,
        WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR)
    negative, mates = pair_masks(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset)
    row_keep, column_keep = negative, negative
    if row_limits is not None:
        row_keep = within_limits(negative, z, row_limits + first_row + rows, row_valid, 1)
        if COLUMNS:
            column_keep = within_limits(negative, z, column_limits + columns, column_valid, 0)
            negative = row_keep | column_keep
        else:
            negative = row_keep
    weight = b
    if hardness is not None:
        weight += hardness * z
    _store_log_sums(z + weight, negative, row_keep, column_keep, row_valid, column_valid, row_out, column_out, shift_out,
                    LOGS, COLUMNS, row_limits is not None)
    if IMPORTANCE:
        row_at, column_at, shift_at = row_out + next_rows, column_out + next_columns, shift_out + n_tiles
        _store_log_sums(weight, negative, row_keep, column_keep, row_valid, column_valid, row_at, column_at, shift_at,
                        LOGS, COLUMNS, row_limits is not None)
    if row_groups is not None:
        row_at, column_at, shift_at = row_out + 2 * next_rows, column_out + 2 * next_columns, shift_out + 2 * n_tiles
        # Most rows have no mate in a tile: their sum of 0 is no underflow.
        row_mates, column_mates = tl.sum(mates.to(tl.float32), 1), tl.sum(mates.to(tl.float32), 0)
        _store_log_sums(z, mates, mates, mates, row_mates > 0, column_mates > 0, row_at, column_at, shift_at,
                        LOGS, COLUMNS, False)
        mate_logits = tl.where(mates, z, 0.0) * LN_2
        tl.store(row_at + next_rows, tl.sum(mate_logits, 1))
        tl.store(row_at + 2 * next_rows, row_mates)
        if COLUMNS:
            tl.store(column_at + next_columns, tl.sum(mate_logits, 0))
            tl.store(column_at + 2 * next_columns, column_mates)
    if COUNT:
        kept = b > float("-inf")
        tl.store(row_out + 5 * next_rows, tl.sum((row_keep & kept).to(tl.float32), 1))
        if COLUMNS:
            tl.store(column_out + 5 * next_columns, tl.sum((column_keep & kept).to(tl.float32), 0))


@triton.jit
def slopes_kernel(
    x, y, scale, bias, image_table, text_table,
    row_image, row_text, row_factors, row_groups, row_limits,
    column_image, column_text, column_factors, column_groups, column_limits,
    row_levels, row_grads, column_levels, column_grads, out, total_rows,
    n_rows, n_columns, first_row, d, r, offset, hardness,
    image_down, image_across, text_down, text_across,
    IMPORTANCE: tl.constexpr, COLUMNS: tl.constexpr, WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):
    """Write the slopes of each tile to ``out[row, column]``.

    Levels are the sums of the forward pass (+inf for an empty sum), grads their gradients, both ``[part, anchor]``. Levels of
    part 0 are already ``level - log2(grad)``, which frees registers; its gradients are never negative.
    """
    row_tile, column_tile = tile_position(tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN), GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    z, b = logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, first_row, d, r, image_down, image_across, text_down, text_across,
        WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR)
    negative, mates = pair_masks(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset)
    row_valid, column_valid = rows < n_rows, columns < n_columns
    row_at = first_row + rows
    keep = negative
    if row_limits is not None:
        keep = within_limits(negative, z, row_limits + row_at, row_valid, 1)
    weight = b
    steepness = 1.0
    if hardness is not None:
        weight += hardness * z
        steepness += hardness
    total = tl.exp2(z + weight - tl.load(row_levels + row_at, mask=row_valid, other=float("inf"))[:, None]) * steepness
    if IMPORTANCE:
        level, grad = row_levels + total_rows + row_at, row_grads + total_rows + row_at
        total += _slopes(weight, level, grad, row_valid, 1) * hardness
    if COLUMNS:
        level, grad = column_levels + columns, column_grads + columns
        column_part = tl.exp2(z + weight - tl.load(level, mask=column_valid, other=float("inf"))[None, :]) * steepness
        if IMPORTANCE:
            column_part += _slopes(weight, level + n_columns, grad + n_columns, column_valid, 0) * hardness
        if row_limits is not None:  # rows and columns keep different pairs
            total = tl.where(keep, total, 0.0)
            keep = within_limits(negative, z, column_limits + columns, column_valid, 0)
            total += tl.where(keep, column_part, 0.0)
            keep = negative
        else:
            total += column_part
    total = tl.where(keep, total, 0.0)
    if row_groups is not None:
        level, grad = row_levels + 2 * total_rows + row_at, row_grads + 2 * total_rows + row_at
        mate_part = _slopes(z, level, grad, row_valid, 1) + tl.load(grad + total_rows, mask=row_valid, other=0.0)[:, None]
        if COLUMNS:
            level, grad = column_levels + 2 * n_columns + columns, column_grads + 2 * n_columns + columns
            mate_part += _slopes(z, level, grad, column_valid, 0)
            mate_part += tl.load(grad + n_columns, mask=column_valid, other=0.0)[None, :]
        total += tl.where(mates, mate_part, 0.0)
    at = out + (rows[:, None] * n_columns + columns[None, :])
    tl.store(at, total.to(out.dtype.element_ty), mask=row_valid[:, None] & column_valid[None, :])


@triton.jit
def _has_underflow(shift_at, n_tiles, IMPORTANCE: tl.constexpr, GROUPS: tl.constexpr):
    """Return whether any part of the tile has an infinite shift."""
    highest = tl.load(shift_at)
    if IMPORTANCE:
        highest = tl.maximum(highest, tl.load(shift_at + n_tiles))
    if GROUPS:
        highest = tl.maximum(highest, tl.load(shift_at + 2 * n_tiles))
    return highest == float("inf")


@triton.jit
def _store_log_sums(
    values, keep, row_keep, column_keep, row_valid, column_valid, row_at, column_at, shift_at,
    LOGS: tl.constexpr, COLUMNS: tl.constexpr, LIMITS: tl.constexpr,
):
    """Write the sums of powers of two of the rows and columns of a tile, and their shift.

    `keep` are all pairs that rows or columns keep. With LIMITS, rows and columns keep different pairs.
    """
    values = tl.where(keep, values, float("-inf"))
    row_values, column_values = values, values
    if LOGS:
        if LIMITS:
            row_values = tl.where(row_keep, values, float("-inf"))
            column_values = tl.where(column_keep, values, float("-inf"))
        tl.store(row_at, _log_sums(row_values, 1))
        if COLUMNS:
            tl.store(column_at, _log_sums(column_values, 0))
        tl.store(shift_at, float("inf"))
    else:
        top = tl.max(values)
        shift = tl.maximum(top, NOTHING) - HEADROOM
        power = tl.exp2(values - shift)
        kept = power
        if LIMITS:
            kept = tl.where(row_keep, power, 0.0)
        row_totals = tl.sum(kept, 1)
        tl.store(row_at, row_totals)
        least = tl.min(tl.where(row_valid, row_totals, 1.0))
        if COLUMNS:
            kept = power
            if LIMITS:
                kept = tl.where(column_keep, power, 0.0)
            column_totals = tl.sum(kept, 0)
            tl.store(column_at, column_totals)
            least = tl.minimum(least, tl.min(tl.where(column_valid, column_totals, 1.0)))
        tl.store(shift_at, tl.where((least < LEAST) & (top > NOTHING), float("inf"), shift))


@triton.jit
def _log_sums(values, AXIS: tl.constexpr):
    """Return the base-2 logarithms of the sums of powers of two along an axis, for values of any range."""
    top = tl.maximum(tl.max(values, AXIS), NOTHING)
    return tl.log2(tl.sum(tl.exp2(values - tl.expand_dims(top, AXIS)), AXIS)) + top


@triton.jit
def _slopes(values, level, grad, valid, AXIS: tl.constexpr):
    """Return the derivatives of a log-sum-exp with respect to its values, times the gradient of the sum."""
    level = tl.expand_dims(tl.load(level, mask=valid, other=float("inf")), AXIS)
    grad = tl.expand_dims(tl.load(grad, mask=valid, other=0.0), AXIS)
    return tl.exp2(values - level) * grad
