"""One tile of the matrix of all pairs: its logits and log-weights, in units of log(2), and its incorrect pairs."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


# fmt: off
@triton.jit
def tile_position(n_row_tiles, n_column_tiles, GROUP: tl.constexpr):
    """Return row and column of this program's tile: GROUP tiles down, then the next column, for the L2 cache."""
    program = tl.program_id(0)
    width = GROUP * n_column_tiles
    first = program // width * GROUP
    size = min(n_row_tiles - first, GROUP)
    return first + (program % width) % size, (program % width) // size


@triton.jit
def logits_and_weights(
    x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
    rows, columns, n_rows, n_columns, first_row, d, r, image_down, image_across, text_down, text_across,
    WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):
    """Return the logits and the log-weights of a tile."""
    valid = columns < n_columns
    # Rows beyond the end read row 0, which is cheaper than a mask in every step of the product.
    read_rows, read_columns = first_row + tl.where(rows < n_rows, rows, 0), tl.where(valid, columns, 0)
    z = _products(x, y, read_rows, read_columns, d, PRECISION, BM, BN, BK) * (tl.load(scale).to(tl.float32) * LOG2_E)
    if bias is not None:
        z += tl.load(bias).to(tl.float32) * LOG2_E
    # Wide tables are added in their own dtype: float16 takes half the registers.
    if image_table is not None:
        entry = _look_up(image_table, row_image, column_image, read_rows, columns, valid, image_down, image_across, WIDE_IMAGE)
        if text_table is not None:
            entry += _look_up(text_table, row_text, column_text, read_rows, columns, valid, text_down, text_across, WIDE_TEXT)
        b = entry.to(tl.float32)
    elif text_table is not None:
        entry = _look_up(text_table, row_text, column_text, read_rows, columns, valid, text_down, text_across, WIDE_TEXT)
        b = entry.to(tl.float32)
    else:
        b = tl.zeros((BM, BN), dtype=tl.float32)
    if row_factors is not None:
        b -= _products(row_factors, column_factors, read_rows, read_columns, r, PRECISION, BM, BN, BR) * LOG2_E
    return z, b


@triton.jit
def _products(x, y, rows, columns, d, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Return the inner products of rows of x and of y, float32, shape (BM, BN); d is a multiple of BK."""
    k = tl.arange(0, BK)
    x_at = x + rows[:, None].to(tl.int64) * d + k[None, :]
    y_at = y + columns[None, :].to(tl.int64) * d + k[:, None]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for _ in range(0, d, BK):
        total = tl.dot(tl.load(x_at), tl.load(y_at), total, input_precision=PRECISION)
        x_at += BK
        y_at += BK
    return total


@triton.jit
def _look_up(table, row_labels, column_labels, rows, columns, valid, down, across, WIDE: tl.constexpr):
    """Return the entries of a table for a tile, in base 2; a wide table is in base 2 already, with one column per sample."""
    row_start = tl.load(row_labels + rows).to(tl.int32) * down
    if WIDE:
        entry = tl.load(table + (row_start[:, None] + columns[None, :]), mask=valid[None, :], other=0.0)
    else:
        column_start = tl.load(column_labels + columns, mask=valid, other=0).to(tl.int32) * across
        entry = tl.load(table + (row_start[:, None] + column_start[None, :])).to(tl.float32) * LOG2_E
    return entry


@triton.jit
def pair_masks(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset):
    """Return which pairs of a tile are incorrect, and which are mates (unused without groups); positives are neither."""
    row_valid, column_valid = rows < n_rows, columns < n_columns
    negative = row_valid[:, None] & column_valid[None, :] & ((first_row + rows + offset)[:, None] != columns[None, :])
    mates = negative
    if row_groups is not None:
        row_group = tl.load(row_groups + first_row + rows, mask=row_valid, other=0)
        column_group = tl.load(column_groups + columns, mask=column_valid, other=0)
        mates = negative & (row_group[:, None] == column_group[None, :])
        negative = negative & (row_group[:, None] != column_group[None, :])
    return negative, mates


@triton.jit
def within_limits(negative, z, limit, valid, AXIS: tl.constexpr):
    """Return which incorrect pairs are not above the limit of their anchor."""
    return negative & (z <= tl.expand_dims(tl.load(limit, mask=valid, other=0.0), AXIS))
