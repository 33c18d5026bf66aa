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
    row_sums, column_sums, n_rows, n_columns, first_row, d, r, offset, hardness, image_stride, text_stride,
    IMPORTANCE: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr, WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):
    """Write the six sums (see `clip_negatives.kernels.pairs`) of the rows and of the columns of each tile.

    ``row_sums[part, column tile, row]`` and ``column_sums[part, row tile, column]``, float32. Parts that are not asked for are
    left as they are.
    """
    row_tile, column_tile = _place(tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN), GROUP)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    z, b = _logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, first_row, d, r, image_stride, text_stride, WIDE_IMAGE, WIDE_TEXT,
        EVEN, PRECISION, BM, BN, BK, BR,
    )
    negative, mates = _kinds(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset)
    row_keep = _within(negative, z, row_limits, first_row + rows, rows < n_rows, 1)
    column_keep = row_keep
    if COLUMNS:
        column_keep = _within(negative, z, column_limits, columns, columns < n_columns, 0)
    row_out = row_sums + column_tile.to(tl.int64) * n_rows + rows
    row_part = tl.cdiv(n_columns, BN).to(tl.int64) * n_rows
    column_out = column_sums + row_tile.to(tl.int64) * n_columns + columns
    column_part = tl.cdiv(n_rows, BM).to(tl.int64) * n_columns
    row_there, column_there = rows < n_rows, columns < n_columns

    either = row_keep | column_keep
    _store_log_sums(z + b + hardness * z, either, row_keep, column_keep, row_out, column_out, row_there, column_there, COLUMNS)
    if IMPORTANCE:
        row_at, column_at = row_out + row_part, column_out + column_part
        _store_log_sums(b + hardness * z, either, row_keep, column_keep, row_at, column_at, row_there, column_there, COLUMNS)
    if row_groups is not None:
        row_at, column_at = row_out + 2 * row_part, column_out + 2 * column_part
        _store_log_sums(z, mates, mates, mates, row_at, column_at, row_there, column_there, COLUMNS)
        alike, counted = tl.where(mates, z, 0.0) * LN_2, mates.to(tl.float32)
        tl.store(row_at + row_part, tl.sum(alike, 1), mask=row_there)
        tl.store(row_at + 2 * row_part, tl.sum(counted, 1), mask=row_there)
        if COLUMNS:
            tl.store(column_at + column_part, tl.sum(alike, 0), mask=column_there)
            tl.store(column_at + 2 * column_part, tl.sum(counted, 0), mask=column_there)
    if COUNT:
        kept = b > float("-inf")
        tl.store(row_out + 5 * row_part, tl.sum((row_keep & kept).to(tl.float32), 1), mask=row_there)
        if COLUMNS:
            tl.store(column_out + 5 * column_part, tl.sum((column_keep & kept).to(tl.float32), 0), mask=column_there)


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

    Levels are the sums of the forward pass (+inf for a sum over nothing), grads their gradients, both ``[part, anchor]``.
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
    row_keep = _within(negative, z, row_limits, row_at, row_there, 1)
    value = z + b + hardness * z
    total = _slopes(value, row_keep, row_levels + row_at, row_grads + row_at, row_there, 1) * (1.0 + hardness)
    if IMPORTANCE:
        level, grad = row_levels + total_rows + row_at, row_grads + total_rows + row_at
        total += _slopes(b + hardness * z, row_keep, level, grad, row_there, 1) * hardness
    if row_groups is not None:
        level, grad = row_levels + 2 * total_rows + row_at, row_grads + 2 * total_rows + row_at
        total += _slopes(z, mates, level, grad, row_there, 1)
        linear = tl.load(grad + total_rows, mask=row_there, other=0.0)
        total += tl.where(mates, linear[:, None], 0.0)
    if COLUMNS:
        column_keep = _within(negative, z, column_limits, columns, column_there, 0)
        level, grad = column_levels + columns, column_grads + columns
        total += _slopes(value, column_keep, level, grad, column_there, 0) * (1.0 + hardness)
        if IMPORTANCE:
            total += _slopes(b + hardness * z, column_keep, level + n_columns, grad + n_columns, column_there, 0) * hardness
        if row_groups is not None:
            total += _slopes(z, mates, level + 2 * n_columns, grad + 2 * n_columns, column_there, 0)
            linear = tl.load(grad + 3 * n_columns, mask=column_there, other=0.0)
            total += tl.where(mates, linear[None, :], 0.0)
    at = out + rows[:, None].to(tl.int64) * n_columns + columns[None, :]
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
    rows = first_row + tl.where(rows < n_rows, rows, 0)
    columns = tl.where(columns < n_columns, columns, 0)
    z = _products(x, y, rows, columns, d, EVEN, PRECISION, BM, BN, BK) * (tl.load(scale).to(tl.float32) * LOG2_E)
    if bias is not None:
        z += tl.load(bias).to(tl.float32) * LOG2_E
    b = tl.zeros((BM, BN), dtype=tl.float32)
    if image_table is not None:
        b += _look_up(image_table, row_image, column_image, rows, columns, image_stride, WIDE_IMAGE)
    if text_table is not None:
        b += _look_up(text_table, row_text, column_text, rows, columns, text_stride, WIDE_TEXT)
    if row_factors is not None:
        b -= _products(row_factors, column_factors, rows, columns, r, False, PRECISION, BM, BN, BR) * LOG2_E
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
def _look_up(table, row_labels, column_labels, rows, columns, stride, WIDE: tl.constexpr):
    """Return the entries of a table for a tile; a wide one has a column for each sample, which are read side by side."""
    mine = tl.load(row_labels + rows).to(tl.int64)
    theirs = columns.to(tl.int64)
    if not WIDE:
        theirs = tl.load(column_labels + columns).to(tl.int64)
    return tl.load(table + mine[:, None] * stride + theirs[None, :]).to(tl.float32)


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
def _within(negative, z, limits, at, there, AXIS: tl.constexpr):
    """Return which incorrect pairs are within the limits of their anchor."""
    if limits is not None:
        negative = negative & (z <= tl.expand_dims(tl.load(limits + at, mask=there, other=0.0), AXIS))
    return negative


@triton.jit
def _store_log_sums(
    values, either, row_keep, column_keep, row_at, column_at, row_there, column_there, COLUMNS: tl.constexpr
):
    """Write the log-sum-exp, in units of 1, of the rows and of the columns of a tile; `either` is what any of them keeps."""
    values = tl.where(either, values, float("-inf"))
    shift = tl.maximum(tl.max(values), NOTHING) - HEADROOM
    power = tl.exp2(values - shift)
    tl.store(row_at, (tl.log2(tl.sum(tl.where(row_keep, power, 0.0), 1)) + shift) * LN_2, mask=row_there)
    if COLUMNS:
        tl.store(column_at, (tl.log2(tl.sum(tl.where(column_keep, power, 0.0), 0)) + shift) * LN_2, mask=column_there)


@triton.jit
def _slopes(values, keep, level, grad, there, AXIS: tl.constexpr):
    """Return the derivatives of a log-sum-exp by its values, times the gradient of the sum."""
    level = tl.expand_dims(tl.load(level, mask=there, other=float("inf")), AXIS)
    grad = tl.expand_dims(tl.load(grad, mask=there, other=0.0), AXIS)
    return tl.where(keep, tl.exp2(values - level) * grad, 0.0)
