"""Triton kernel of the sums of each tile of the matrix of all pairs.

* Base 2: logits, tables, limits and levels are in units of log(2), for ``exp2``.
* Masks: without groups and limits, only tiles with positives, or beyond the last row or column, need a mask.
* No atomics: another kernel adds up the sums of the tiles. Arguments that are None are compiled away.
"""

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
from clip_negatives.losses.kernels.tile_reductions import store_log_sums, store_target_sums

LN_2 = tl.constexpr(0.6931471805599453)


# fmt: off
@triton.jit
def sums_kernel(
    x, y, scale, bias, image_table, text_table,
    row_image, row_text, row_factors, row_targets, row_groups, row_limits,
    column_image, column_text, column_factors, column_targets, column_groups, column_limits,
    row_sums, column_sums, shifts, n_rows, n_columns, d, r, t, offset, hardness,
    image_down, image_across, text_down, text_across,
    LOGS: tl.constexpr, COUNT: tl.constexpr, IMPORTANCE: tl.constexpr, COLUMNS: tl.constexpr,
    WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
):
    """Write the requested parts of `PairSums`, over the rows and over the columns of each tile.

    The outputs are ``row_sums[part, column tile, row]`` and ``column_sums[part, row tile, column]``, float32, with rows and
    columns rounded up to whole tiles. For a logarithmic part, they hold sums of powers of two, and the logarithm is
    ``log2(sum) + shifts[part, row tile, column tile]``: logarithms in the tile would take longer than all its exponentials.

    An infinite shift marks a tile with underflow. A second launch with LOGS, of a few programs that look at all tiles,
    computes only these tiles again and writes logarithms. One kernel for both cases would reserve registers for the rare case.
    """
    if LOGS:
        n_tiles = tl.cdiv(n_rows, BM) * tl.cdiv(n_columns, BN)
        for tile in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
            if _has_underflow(shifts + tile, n_tiles, IMPORTANCE, row_groups is not None, row_targets is not None):
                row_tile, column_tile = tile // tl.cdiv(n_columns, BN), tile % tl.cdiv(n_columns, BN)
                _write_sums(
                    row_tile, column_tile, x, y, scale, bias, image_table, text_table,
                    row_image, row_text, row_factors, row_targets, row_groups, row_limits,
                    column_image, column_text, column_factors, column_targets, column_groups, column_limits,
                    row_sums, column_sums, shifts, n_rows, n_columns, d, r, t, offset, hardness,
                    image_down, image_across, text_down, text_across, LOGS, COUNT, IMPORTANCE, COLUMNS,
                    WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR)
    else:
        row_tile, column_tile = tile_position(tl.program_id(0), tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN), GROUP)
        _write_sums(
            row_tile, column_tile, x, y, scale, bias, image_table, text_table,
            row_image, row_text, row_factors, row_targets, row_groups, row_limits,
            column_image, column_text, column_factors, column_targets, column_groups, column_limits,
            row_sums, column_sums, shifts, n_rows, n_columns, d, r, t, offset, hardness,
            image_down, image_across, text_down, text_across, LOGS, COUNT, IMPORTANCE, COLUMNS,
            WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR)


@triton.jit
def _write_sums(
    row_tile, column_tile, x, y, scale, bias, image_table, text_table,
    row_image, row_text, row_factors, row_targets, row_groups, row_limits,
    column_image, column_text, column_factors, column_targets, column_groups, column_limits,
    row_sums, column_sums, shifts, n_rows, n_columns, d, r, t, offset, hardness,
    image_down, image_across, text_down, text_across,
    LOGS: tl.constexpr, COUNT: tl.constexpr, IMPORTANCE: tl.constexpr, COLUMNS: tl.constexpr,
    WIDE_IMAGE: tl.constexpr, WIDE_TEXT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):
    """Write the sums of one tile."""
    n_row_tiles, n_column_tiles = tl.cdiv(n_rows, BM), tl.cdiv(n_columns, BN)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    row_valid, column_valid = rows < n_rows, columns < n_columns
    row_out = row_sums + column_tile.to(tl.int64) * n_row_tiles * BM + rows
    column_out = column_sums + row_tile.to(tl.int64) * n_column_tiles * BN + columns
    shift_out = shifts + row_tile * n_column_tiles + column_tile
    # Strides between parts.
    n_tiles = n_row_tiles.to(tl.int64) * n_column_tiles
    next_rows, next_columns = n_tiles * BM, n_tiles * BN
    at_edge = crosses_edge(row_tile, column_tile, n_rows, n_columns, offset, BM, BN)
    z, b = logits_and_weights(
        x, y, scale, bias, image_table, text_table, row_image, row_text, row_factors, column_image, column_text, column_factors,
        rows, columns, n_rows, n_columns, d, r, image_down, image_across, text_down, text_across,
        WIDE_IMAGE, WIDE_TEXT, PRECISION, BM, BN, BK, BR)
    weight = b
    if hardness is not None:
        weight += hardness * z
    values = z + weight
    row_keep, column_keep = values, values  # read with limits only
    if row_groups is not None or row_limits is not None:
        negative = incorrect_pairs(rows, columns, n_rows, n_columns, offset)
        if row_groups is not None:
            negative, mates = split_mates(negative, row_groups, column_groups, rows, columns, n_rows, n_columns)
        if row_limits is not None:
            row_keep = within_limits(negative, z, row_limits + rows, row_valid, 1)
            negative = row_keep
            if COLUMNS:
                column_keep = within_limits(incorrect_pairs(rows, columns, n_rows, n_columns, offset), z,
                                            column_limits + columns, column_valid, 0)
                if row_groups is not None:
                    column_keep = column_keep & (mates == 0)
                negative = row_keep | column_keep
        values = tl.where(negative, values, float("-inf"))
        if IMPORTANCE or COUNT:
            weight = tl.where(negative, weight, float("-inf"))
    elif at_edge:
        negative = incorrect_pairs(rows, columns, n_rows, n_columns, offset)
        values = tl.where(negative, values, float("-inf"))
        if IMPORTANCE or COUNT:
            weight = tl.where(negative, weight, float("-inf"))
    store_log_sums(values, row_keep, column_keep, row_valid, column_valid, row_out, column_out, shift_out,
                    LOGS, COLUMNS, row_limits is not None)
    if IMPORTANCE:
        row_at, column_at, shift_at = row_out + next_rows, column_out + next_columns, shift_out + n_tiles
        store_log_sums(weight, row_keep, column_keep, row_valid, column_valid, row_at, column_at, shift_at,
                        LOGS, COLUMNS, row_limits is not None)
    if row_groups is not None:
        row_at, column_at, shift_at = row_out + 2 * next_rows, column_out + 2 * next_columns, shift_out + 2 * n_tiles
        # Most rows have no mate in a tile: their sum of 0 is no underflow.
        row_mates, column_mates = tl.sum(mates.to(tl.float32), 1), tl.sum(mates.to(tl.float32), 0)
        store_log_sums(tl.where(mates, z, float("-inf")), mates, mates, row_mates > 0, column_mates > 0,
                        row_at, column_at, shift_at, LOGS, COLUMNS, False)
        mate_logits = tl.where(mates, z, 0.0) * LN_2
        tl.store(row_at + next_rows, tl.sum(mate_logits, 1))
        tl.store(row_at + 2 * next_rows, row_mates)
        if COLUMNS:
            tl.store(column_at + next_columns, tl.sum(mate_logits, 0))
            tl.store(column_at + 2 * next_columns, column_mates)
    if COUNT:
        kept = weight > float("-inf")
        row_kept, column_kept = kept, kept
        if row_limits is not None:
            row_kept = kept & row_keep
            if COLUMNS:
                column_kept = kept & column_keep
        tl.store(row_out + 5 * next_rows, tl.sum(row_kept.to(tl.float32), 1))
        if COLUMNS:
            tl.store(column_out + 5 * next_columns, tl.sum(column_kept.to(tl.float32), 0))
    if row_targets is not None:
        scores = products(row_targets, column_targets, rows, columns, n_rows, n_columns, t, PRECISION, BM, BN, BR) * LOG2_E
        if at_edge:
            scores = tl.where(incorrect_pairs(rows, columns, n_rows, n_columns, offset), scores, float("-inf"))
        row_at, column_at, shift_at = row_out + 6 * next_rows, column_out + 6 * next_columns, shift_out + 7 * n_tiles
        store_target_sums(scores, z * LN_2, row_valid, column_valid, row_at, column_at, shift_at, next_rows, next_columns,
                           LOGS, COLUMNS)


@triton.jit
def _has_underflow(shift_at, n_tiles, IMPORTANCE: tl.constexpr, GROUPS: tl.constexpr, TARGETS: tl.constexpr):
    """Return whether any part of the tile has an infinite shift."""
    highest = tl.load(shift_at)
    if IMPORTANCE:
        highest = tl.maximum(highest, tl.load(shift_at + n_tiles))
    if GROUPS:
        highest = tl.maximum(highest, tl.load(shift_at + 2 * n_tiles))
    if TARGETS:
        highest = tl.maximum(highest, tl.load(shift_at + 7 * n_tiles))
    return highest == float("inf")
