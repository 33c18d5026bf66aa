"""One tile of the matrix of all pairs: its logits, log-weights and scores, in units of log(2), and its incorrect pairs."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


# fmt: off
@triton.jit
def tile_position(tile, n_row_tiles, n_column_tiles, GROUP: tl.constexpr):
    """Return row and column of a tile: GROUP tiles down, then the next column, for the L2 cache."""
    width = GROUP * n_column_tiles
    first = tile // width * GROUP
    size = min(n_row_tiles - first, GROUP)
    return first + (tile % width) % size, (tile % width) // size


@triton.jit
def crosses_edge(row_tile, column_tile, n_rows, n_columns, offset, BM: tl.constexpr, BN: tl.constexpr):
    """Return whether a tile has a positive, or rows or columns beyond the end: all other tiles need no mask."""
    positive = row_tile * BM + offset - column_tile * BN  # column of the first row's positive, within the tile
    beyond = (row_tile * BM + BM > n_rows) | (column_tile * BN + BN > n_columns)
    return beyond | ((positive < BN) & (positive + BM > 0))


@triton.jit
def incorrect_pairs(rows, columns, n_rows, n_columns, offset):
    """Return which pairs of a tile are not positives and not beyond the end."""
    return (rows < n_rows)[:, None] & (columns < n_columns)[None, :] & ((rows + offset)[:, None] != columns[None, :])


@triton.jit
def split_mates(pairs, row_groups, column_groups, rows, columns, n_rows, n_columns):
    """Return which incorrect pairs are of two groups (the negatives), and which of one (the mates)."""
    row_group = tl.load(row_groups + rows, mask=rows < n_rows, other=0)
    column_group = tl.load(column_groups + columns, mask=columns < n_columns, other=0)
    same = row_group[:, None] == column_group[None, :]
    return pairs & (same == 0), pairs & same


@triton.jit
def within_limits(negative, z, limit, valid, AXIS: tl.constexpr):
    """Return which incorrect pairs are not above the limit of their anchor."""
    return negative & (z <= tl.expand_dims(tl.load(limit, mask=valid, other=0.0), AXIS))


@triton.jit
def logits_and_weights(
    x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
    rows, columns, n_rows, n_columns, d, r, image_down, image_across, text_down, text_across,
    WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):
    """Return the logits and the log-weights of a tile."""
    z = products(x, y, rows, columns, n_rows, n_columns, d, PRECISION, BM, BN, BK) * (tl.load(scale).to(tl.float32) * LOG2_E)
    if bias is not None:
        z += tl.load(bias).to(tl.float32) * LOG2_E
    # Wide tables are added in their own dtype: float16 takes half the registers.
    if image_table is not None:
        entry = _look_up(image_table, row_image, column_image, rows, columns, n_rows, n_columns,
                         image_down, image_across, WIDE_IMAGE)
        if text_table is not None:
            entry += _look_up(text_table, row_text, column_text, rows, columns, n_rows, n_columns,
                              text_down, text_across, WIDE_TEXT)
        b = entry.to(tl.float32)
    elif text_table is not None:
        entry = _look_up(text_table, row_text, column_text, rows, columns, n_rows, n_columns,
                         text_down, text_across, WIDE_TEXT)
        b = entry.to(tl.float32)
    else:
        b = tl.zeros((BM, BN), dtype=tl.float32)
    if row_factors is not None:
        b -= products(row_factors, column_factors, rows, columns, n_rows, n_columns, r, PRECISION, BM, BN, BR) * LOG2_E
    return z, b


@triton.jit
def products(x, y, rows, columns, n_rows, n_columns, d, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
             BK: tl.constexpr):
    """Return the inner products of rows of x and of y, float32, shape (BM, BN); d is a multiple of BK."""
    # Rows and columns beyond the end read row 0: this is cheaper than a mask in every step of the product.
    rows, columns = tl.where(rows < n_rows, rows, 0), tl.where(columns < n_columns, columns, 0)
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
def _look_up(table, row_labels, column_labels, rows, columns, n_rows, n_columns, down, across, WIDE: tl.constexpr):
    """Return the entries of a table for a tile, in base 2.

    A wide table is in base 2 already, with one column per sample and whole tiles of columns.
    """
    row_start = tl.load(row_labels + rows, mask=rows < n_rows, other=0).to(tl.int32) * down
    if WIDE:
        entry = tl.load(table + (row_start[:, None] + columns[None, :]))
    else:
        column_start = tl.load(column_labels + columns, mask=columns < n_columns, other=0).to(tl.int32) * across
        entry = tl.load(table + (row_start[:, None] + column_start[None, :])).to(tl.float32) * LOG2_E
    return entry
