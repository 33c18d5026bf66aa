"""Triton kernels over the tiles of the matrix of all pairs. Nothing of the matrix leaves a tile but sums, or its slopes.

All exponentials are of base 2: logits, tables, limits and levels are in units of log(2). One maximum serves a tile, so that one
exponential serves its rows and its columns; it is put `HEADROOM` powers of two above 1, which makes room for what is small in
the tile but not in its row. Where that is not enough, a tile is computed again by the maxima of its rows and columns. No
atomics: every tile writes sums of its own, which are added up outside. What is None is compiled away.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clip_negatives.kernels.tile_logits import kinds, logits_and_weights, place, within

HEADROOM = tl.constexpr(100.0)
LEAST = tl.constexpr(2.0**-90)  # a smaller sum may have lost digits, or all, to the bottom of float32
NOTHING = tl.constexpr(-1.0e30)  # stands for the maximum of a tile all of whose values are -inf
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
    """Write the six sums (see `clip_negatives.kernels.pairs`) of the rows and of the columns of each tile.

    ``row_sums[part, column tile, row]`` and ``column_sums[part, row tile, column]``, float32, rows and columns rounded up to
    whole tiles. Logarithmic parts are written as sums of powers of two, to be read as ``log2(sum) + shifts[part, row tile,
    column tile]``: a logarithm in the tile costs more than all of its exponentials. Parts that are not asked for are left as
    they are.

    One maximum of a tile is not enough where a row or column lies far below it: the shift is then infinite. With LOGS, only
    such tiles are computed, and logarithms written. Both in one kernel would hold registers for what is seldom.
    """
    n_row_tiles, n_column_tiles = tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN)
    row_tile, column_tile = place(n_row_tiles, n_column_tiles, GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    row_there, column_there = rows < n_rows, columns < n_columns
    row_out = row_sums + column_tile.to(tl.int64) * n_row_tiles * BM + rows
    column_out = column_sums + row_tile.to(tl.int64) * n_column_tiles * BN + columns
    shift_out = shifts + row_tile * n_column_tiles + column_tile
    # From one part to the next.
    n_tiles = n_row_tiles.to(tl.int64) * n_column_tiles
    next_rows, next_columns = n_tiles * BM, n_tiles * BN
    if LOGS and not _is_lost(shift_out, n_tiles, IMPORTANCE, row_groups is not None):
        return
    z, b = logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, first_row, d, r, image_down, image_across, text_down, text_across,
        WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR,
    )
    negative, mates = kinds(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset)
    row_keep, column_keep = negative, negative
    if row_limits is not None:
        row_keep = within(negative, z, row_limits + first_row + rows, row_there, 1)
        if COLUMNS:
            column_keep = within(negative, z, column_limits + columns, column_there, 0)
            negative = row_keep | column_keep
        else:
            negative = row_keep
    weight = b
    if hardness is not None:
        weight += hardness * z
    _store_log_sums(
        z + weight, negative, row_keep, column_keep, row_there, column_there, row_out, column_out, shift_out,
        LOGS, COLUMNS, row_limits is not None,
    )
    if IMPORTANCE:
        row_at, column_at, shift_at = row_out + next_rows, column_out + next_columns, shift_out + n_tiles
        _store_log_sums(
            weight, negative, row_keep, column_keep, row_there, column_there, row_at, column_at, shift_at,
            LOGS, COLUMNS, row_limits is not None,
        )
    if row_groups is not None:
        row_at, column_at, shift_at = row_out + 2 * next_rows, column_out + 2 * next_columns, shift_out + 2 * n_tiles
        # Most have no mate in a tile, which is no reason to compute it again.
        row_mates, column_mates = tl.sum(mates.to(tl.float32), 1), tl.sum(mates.to(tl.float32), 0)
        _store_log_sums(
            z, mates, mates, mates, row_mates > 0, column_mates > 0, row_at, column_at, shift_at, LOGS, COLUMNS, False
        )
        alike = tl.where(mates, z, 0.0) * LN_2
        tl.store(row_at + next_rows, tl.sum(alike, 1))
        tl.store(row_at + 2 * next_rows, row_mates)
        if COLUMNS:
            tl.store(column_at + next_columns, tl.sum(alike, 0))
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
    """Write dL/dlogits of each tile to ``out[row, column]``.

    Levels are the sums of the forward pass (+inf for a sum over nothing), grads their gradients, both ``[part, anchor]``. Those
    of part 0, which are not negative, are in its levels already, as ``level - log2(grad)``: that frees registers.
    """
    row_tile, column_tile = place(tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN), GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    z, b = logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, first_row, d, r, image_down, image_across, text_down, text_across,
        WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR,
    )
    negative, mates = kinds(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset)
    row_there, column_there = rows < n_rows, columns < n_columns
    row_at = first_row + rows
    keep = negative
    if row_limits is not None:
        keep = within(negative, z, row_limits + row_at, row_there, 1)
    weight = b
    steepness = 1.0
    if hardness is not None:
        weight += hardness * z
        steepness += hardness
    total = tl.exp2(z + weight - tl.load(row_levels + row_at, mask=row_there, other=float("inf"))[:, None]) * steepness
    if IMPORTANCE:
        level, grad = row_levels + total_rows + row_at, row_grads + total_rows + row_at
        total += _slopes(weight, level, grad, row_there, 1) * hardness
    if COLUMNS:
        level, grad = column_levels + columns, column_grads + columns
        found = tl.exp2(z + weight - tl.load(level, mask=column_there, other=float("inf"))[None, :]) * steepness
        if IMPORTANCE:
            found += _slopes(weight, level + n_columns, grad + n_columns, column_there, 0) * hardness
        if row_limits is not None:  # then rows and columns do not keep the same pairs
            total = tl.where(keep, total, 0.0)
            keep = within(negative, z, column_limits + columns, column_there, 0)
            total += tl.where(keep, found, 0.0)
            keep = negative
        else:
            total += found
    total = tl.where(keep, total, 0.0)
    if row_groups is not None:
        level, grad = row_levels + 2 * total_rows + row_at, row_grads + 2 * total_rows + row_at
        found = _slopes(z, level, grad, row_there, 1) + tl.load(grad + total_rows, mask=row_there, other=0.0)[:, None]
        if COLUMNS:
            level, grad = column_levels + 2 * n_columns + columns, column_grads + 2 * n_columns + columns
            found += _slopes(z, level, grad, column_there, 0)
            found += tl.load(grad + n_columns, mask=column_there, other=0.0)[None, :]
        total += tl.where(mates, found, 0.0)
    at = out + (rows[:, None] * n_columns + columns[None, :])
    tl.store(at, total.to(out.dtype.element_ty), mask=row_there[:, None] & column_there[None, :])


@triton.jit
def _is_lost(shift_at, n_tiles, IMPORTANCE: tl.constexpr, GROUPS: tl.constexpr):
    """Return whether the shift of any part is infinite."""
    highest = tl.load(shift_at)
    if IMPORTANCE:
        highest = tl.maximum(highest, tl.load(shift_at + n_tiles))
    if GROUPS:
        highest = tl.maximum(highest, tl.load(shift_at + 2 * n_tiles))
    return highest == float("inf")


@triton.jit
def _store_log_sums(
    values, keep, row_keep, column_keep, row_there, column_there, row_at, column_at, shift_at,
    LOGS: tl.constexpr, COLUMNS: tl.constexpr, LIMITS: tl.constexpr,
):
    """Write the sums of powers of two of the rows and of the columns of a tile, and what they are shifted by.

    `keep` is what any of them keeps; with LIMITS, rows and columns keep different parts of it.
    """
    values = tl.where(keep, values, float("-inf"))
    of_rows, of_columns = values, values
    if LOGS:
        if LIMITS:
            of_rows, of_columns = tl.where(row_keep, values, float("-inf")), tl.where(column_keep, values, float("-inf"))
        tl.store(row_at, _log_sums(of_rows, 1))
        if COLUMNS:
            tl.store(column_at, _log_sums(of_columns, 0))
        tl.store(shift_at, float("inf"))
    else:
        top = tl.max(values)
        shift = tl.maximum(top, NOTHING) - HEADROOM
        power = tl.exp2(values - shift)
        kept = power
        if LIMITS:
            kept = tl.where(row_keep, power, 0.0)
        of_rows = tl.sum(kept, 1)
        tl.store(row_at, of_rows)
        least = tl.min(tl.where(row_there, of_rows, 1.0))
        if COLUMNS:
            kept = power
            if LIMITS:
                kept = tl.where(column_keep, power, 0.0)
            of_columns = tl.sum(kept, 0)
            tl.store(column_at, of_columns)
            least = tl.minimum(least, tl.min(tl.where(column_there, of_columns, 1.0)))
        tl.store(shift_at, tl.where((least < LEAST) & (top > NOTHING), float("inf"), shift))


@triton.jit
def _log_sums(values, AXIS: tl.constexpr):
    """Return the logarithms of base 2 of the sums of powers of two along an axis, whatever their range."""
    top = tl.maximum(tl.max(values, AXIS), NOTHING)
    return tl.log2(tl.sum(tl.exp2(values - tl.expand_dims(top, AXIS)), AXIS)) + top


@triton.jit
def _slopes(values, level, grad, there, AXIS: tl.constexpr):
    """Return the derivatives of a log-sum-exp by its values, times the gradient of the sum."""
    level = tl.expand_dims(tl.load(level, mask=there, other=float("inf")), AXIS)
    grad = tl.expand_dims(tl.load(grad, mask=there, other=0.0), AXIS)
    return tl.exp2(values - level) * grad
