"""Triton kernels over the tiles of the matrix of all pairs. Nothing of the matrix leaves a tile but sums, or its slopes.

All exponentials are of base 2: logits, tables, limits and levels are in units of log(2). One maximum serves a tile, so that one
exponential serves its rows and its columns; it is put `HEADROOM` powers of two below the top of float32, which makes room for
what is small in the tile but not in its row. No atomics: every tile writes sums of its own, which are added up outside. What is
None is compiled away.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEADROOM = tl.constexpr(100.0)
NOTHING = tl.constexpr(-1.0e30)  # stands for the maximum of a tile all of whose values are -inf
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


# fmt: off
@triton.jit
def sums_kernel(
    x, y, scale, bias, image_table, text_table,
    row_image, row_text, row_factors, row_groups, row_limits,
    column_image, column_text, column_factors, column_groups, column_limits,
    row_sums, column_sums, shifts, n_rows, n_columns, first_row, d, r, offset, hardness, image_stride, text_stride,
    IMPORTANCE: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr, WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):
    """Write the six sums (see `clip_negatives.kernels.pairs`) of the rows and of the columns of each tile.

    ``row_sums[part, column tile, row]`` and ``column_sums[part, row tile, column]``, float32, rows and columns rounded up to
    whole tiles. Logarithmic parts are written as sums of powers of two, to be read as ``log2(sum) + shifts[part, row tile,
    column tile]``: a logarithm in the tile costs more than all of its exponentials. Parts that are not asked for are left as
    they are.
    """
    n_row_tiles, n_column_tiles = tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN)
    row_tile, column_tile = _place(n_row_tiles, n_column_tiles, GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    z, b = _logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, first_row, d, r, image_stride, text_stride, WIDE_IMAGE, WIDE_TEXT,
        EVEN, PRECISION, BM, BN, BK, BR,
    )
    negative, mates = _kinds(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset)
    row_out = row_sums + column_tile.to(tl.int64) * n_row_tiles * BM + rows
    column_out = column_sums + row_tile.to(tl.int64) * n_column_tiles * BN + columns
    shift_out = shifts + row_tile * n_column_tiles + column_tile
    # From one part to the next.
    n_tiles = n_row_tiles.to(tl.int64) * n_column_tiles
    next_rows, next_columns = n_tiles * BM, n_tiles * BN

    row_keep, column_keep = negative, negative
    if row_limits is not None:
        row_keep = _within(negative, z, row_limits + first_row + rows, rows < n_rows, 1)
        if COLUMNS:
            column_keep = _within(negative, z, column_limits + columns, columns < n_columns, 0)
            negative = row_keep | column_keep
        else:
            negative = row_keep
    weight = b
    if hardness is not None:
        weight += hardness * z
    _store_log_sums(
        z + weight, negative, row_keep, column_keep, row_out, column_out, shift_out, COLUMNS, row_limits is not None
    )
    if IMPORTANCE:
        row_at, column_at, shift_at = row_out + next_rows, column_out + next_columns, shift_out + n_tiles
        _store_log_sums(
            weight, negative, row_keep, column_keep, row_at, column_at, shift_at, COLUMNS, row_limits is not None
        )
    if row_groups is not None:
        row_at, column_at, shift_at = row_out + 2 * next_rows, column_out + 2 * next_columns, shift_out + 2 * n_tiles
        _store_log_sums(z, mates, mates, mates, row_at, column_at, shift_at, COLUMNS, False)
        alike, counted = tl.where(mates, z, 0.0) * LN_2, mates.to(tl.float32)
        tl.store(row_at + next_rows, tl.sum(alike, 1))
        tl.store(row_at + 2 * next_rows, tl.sum(counted, 1))
        if COLUMNS:
            tl.store(column_at + next_columns, tl.sum(alike, 0))
            tl.store(column_at + 2 * next_columns, tl.sum(counted, 0))
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
    n_rows, n_columns, first_row, d, r, offset, hardness, image_stride, text_stride,
    IMPORTANCE: tl.constexpr, COLUMNS: tl.constexpr, WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):
    """Write dL/dlogits of each tile to ``out[row, column]``.

    Levels are the sums of the forward pass (+inf for a sum over nothing), grads their gradients, both ``[part, anchor]``. Those
    of part 0, which are not negative, are in its levels already, as ``level - log2(grad)``: that frees registers.
    """
    row_tile, column_tile = _place(tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN), GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    z, b = _logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, first_row, d, r, image_stride, text_stride, WIDE_IMAGE, WIDE_TEXT,
        EVEN, PRECISION, BM, BN, BK, BR,
    )
    negative, mates = _kinds(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset)
    row_there, column_there = rows < n_rows, columns < n_columns
    row_at = first_row + rows
    keep = negative
    if row_limits is not None:
        keep = _within(negative, z, row_limits + row_at, row_there, 1)
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
            keep = _within(negative, z, column_limits + columns, column_there, 0)
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
def _place(n_row_tiles, n_column_tiles, GROUP: tl.constexpr):
    """Return the tile of this program: down a few rows of tiles before the next column, for the sake of the L2 cache."""
    program = tl.program_id(0)
    width = GROUP * n_column_tiles
    first = program // width * GROUP
    size = min(n_row_tiles - first, GROUP)
    return first + (program % width) % size, (program % width) // size


@triton.jit
def _logits_and_weights(
    x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
    rows, columns, n_rows, n_columns, first_row, d, r, image_stride, text_stride,
    WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):
    """Return the logits and the log-weights of a tile."""
    row_there, column_there = rows < n_rows, columns < n_columns
    # Rows that are not there are read as the first one: cheaper than a mask in every step of the product.
    some_rows, some_columns = first_row + tl.where(row_there, rows, 0), tl.where(column_there, columns, 0)
    z = _products(x, y, some_rows, some_columns, d, EVEN, PRECISION, BM, BN, BK) * (tl.load(scale).to(tl.float32) * LOG2_E)
    if bias is not None:
        z += tl.load(bias).to(tl.float32) * LOG2_E
    # Added in the type of the tables: half the registers where that is float16.
    if image_table is not None:
        found = _look_up(image_table, row_image, column_image, some_rows, columns, column_there, image_stride, WIDE_IMAGE)
        if text_table is not None:
            found += _look_up(text_table, row_text, column_text, some_rows, columns, column_there, text_stride, WIDE_TEXT)
        b = found.to(tl.float32)
    elif text_table is not None:
        b = _look_up(text_table, row_text, column_text, some_rows, columns, column_there, text_stride, WIDE_TEXT).to(tl.float32)
    else:
        b = tl.zeros((BM, BN), dtype=tl.float32)
    if row_factors is not None:
        b -= _products(row_factors, column_factors, some_rows, some_columns, r, False, PRECISION, BM, BN, BR) * LOG2_E
    return z, b


@triton.jit
def _products(
    x, y, rows, columns, d, EVEN: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Return the inner products of some rows of x with some of y, float32, shape (BM, BN)."""
    k = tl.arange(0, BK)
    x_at = x + rows[:, None].to(tl.int64) * d + k[None, :]
    y_at = y + columns[None, :].to(tl.int64) * d + k[:, None]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, d, BK):
        if EVEN:
            left, right = tl.load(x_at), tl.load(y_at)
        else:
            left = tl.load(x_at, mask=(start + k)[None, :] < d, other=0.0)
            right = tl.load(y_at, mask=(start + k)[:, None] < d, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        x_at += BK
        y_at += BK
    return total


@triton.jit
def _look_up(table, row_labels, column_labels, rows, columns, there, stride, WIDE: tl.constexpr):
    """Return the entries of a table for a tile; a wide one has a column for each sample, which are read side by side."""
    mine = tl.load(row_labels + rows).to(tl.int32) * stride
    theirs = columns
    if not WIDE:
        theirs = tl.load(column_labels + columns, mask=there, other=0).to(tl.int32)
    return tl.load(table + (mine[:, None] + theirs[None, :]), mask=there[None, :], other=0.0)


@triton.jit
def _kinds(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset):
    """Return which pairs of a tile are incorrect, and which are mates; none is both, positives are neither."""
    row_there, column_there = rows < n_rows, columns < n_columns
    negative = row_there[:, None] & column_there[None, :] & ((first_row + rows + offset)[:, None] != columns[None, :])
    mates = negative
    if row_groups is not None:
        mine = tl.load(row_groups + first_row + rows, mask=row_there, other=0)
        theirs = tl.load(column_groups + columns, mask=column_there, other=0)
        mates = negative & (mine[:, None] == theirs[None, :])
        negative = negative & (mine[:, None] != theirs[None, :])
    return negative, mates


@triton.jit
def _within(negative, z, limit, there, AXIS: tl.constexpr):
    """Return which incorrect pairs are within the limits of their anchor."""
    return negative & (z <= tl.expand_dims(tl.load(limit, mask=there, other=0.0), AXIS))


@triton.jit
def _store_log_sums(
    values, keep, row_keep, column_keep, row_at, column_at, shift_at, COLUMNS: tl.constexpr, LIMITS: tl.constexpr
):
    """Write the sums of powers of two of the rows and of the columns of a tile, and what they are shifted by.

    `keep` is what any of them keeps; with LIMITS, rows and columns keep different parts of it.
    """
    values = tl.where(keep, values, float("-inf"))
    shift = tl.maximum(tl.max(values), NOTHING) - HEADROOM
    power = tl.exp2(values - shift)
    tl.store(shift_at, shift)
    kept = power
    if LIMITS:
        kept = tl.where(row_keep, power, 0.0)
    tl.store(row_at, tl.sum(kept, 1))
    if COLUMNS:
        kept = power
        if LIMITS:
            kept = tl.where(column_keep, power, 0.0)
        tl.store(column_at, tl.sum(kept, 0))


@triton.jit
def _slopes(values, level, grad, there, AXIS: tl.constexpr):
    """Return the derivatives of a log-sum-exp by its values, times the gradient of the sum."""
    level = tl.expand_dims(tl.load(level, mask=there, other=float("inf")), AXIS)
    grad = tl.expand_dims(tl.load(grad, mask=there, other=0.0), AXIS)
    return tl.exp2(values - level) * grad
