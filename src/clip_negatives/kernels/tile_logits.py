"""What is in a tile of the matrix of all pairs: logits, log-weights, and which pairs are incorrect. In units of log(2)."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


# fmt: off
@triton.jit
def place(n_row_tiles, n_column_tiles, GROUP: tl.constexpr):
    """Return the tile of this program: down a few rows of tiles before the next column, for the sake of the L2 cache."""
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
    row_there, column_there = rows < n_rows, columns < n_columns
    # Rows that are not there are read as the first one: cheaper than a mask in every step of the product.
    some_rows, some_columns = first_row + tl.where(row_there, rows, 0), tl.where(column_there, columns, 0)
    z = _products(x, y, some_rows, some_columns, d, PRECISION, BM, BN, BK) * (tl.load(scale).to(tl.float32) * LOG2_E)
    if bias is not None:
        z += tl.load(bias).to(tl.float32) * LOG2_E
    # Wide ones are added in their own type: half the registers where that is float16.
    if image_table is not None:
        found = _look_up(
            image_table, row_image, column_image, some_rows, columns, column_there, image_down, image_across, WIDE_IMAGE
        )
        if text_table is not None:
            found += _look_up(
                text_table, row_text, column_text, some_rows, columns, column_there, text_down, text_across, WIDE_TEXT
            )
        b = found.to(tl.float32)
    elif text_table is not None:
        b = _look_up(
            text_table, row_text, column_text, some_rows, columns, column_there, text_down, text_across, WIDE_TEXT
        ).to(tl.float32)
    else:
        b = tl.zeros((BM, BN), dtype=tl.float32)
    if row_factors is not None:
        b -= _products(row_factors, column_factors, some_rows, some_columns, r, PRECISION, BM, BN, BR) * LOG2_E
    return z, b


@triton.jit
def _products(
    x, y, rows, columns, d, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Return the inner products of some rows of x with some of y, float32, shape (BM, BN); d is a multiple of BK."""
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
def _look_up(table, row_labels, column_labels, rows, columns, there, down, across, WIDE: tl.constexpr):
    """Return the entries of a table for a tile, in base 2.

    A wide one is of base 2 itself and has a column for each sample, so that they are read side by side.
    """
    mine = tl.load(row_labels + rows).to(tl.int32) * down
    if WIDE:
        found = tl.load(table + (mine[:, None] + columns[None, :]), mask=there[None, :], other=0.0)
    else:
        theirs = tl.load(column_labels + columns, mask=there, other=0).to(tl.int32) * across
        found = tl.load(table + (mine[:, None] + theirs[None, :])).to(tl.float32) * LOG2_E
    return found


@triton.jit
def kinds(row_groups, column_groups, rows, columns, n_rows, n_columns, first_row, offset):
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
def within(negative, z, limit, there, AXIS: tl.constexpr):
    """Return which incorrect pairs are within the limits of their anchor."""
    return negative & (z <= tl.expand_dims(tl.load(limit, mask=there, other=0.0), AXIS))
