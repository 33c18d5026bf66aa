"""Triton kernel of the sums of each tile of the matrix of all pairs.

* Base 2: logits, tables, limits and levels are in units of log(2), for ``exp2``.
* Range: the values of a tile are shifted so that the largest becomes ``2^HEADROOM``. Rows and columns then share one
  exponential for each pair, with room for small values. If the sum of a row or column still underflows, the tile is computed
  again, with the maximum of each row and column.
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

HEADROOM = tl.constexpr(100.0)
LEAST = tl.constexpr(2.0**-90)  # below this, a sum may have lost values to underflow in float32
NOTHING = tl.constexpr(-1.0e30)  # replaces the maximum -inf of a tile without pairs
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
    _store_log_sums(values, row_keep, column_keep, row_valid, column_valid, row_out, column_out, shift_out,
                    LOGS, COLUMNS, row_limits is not None)
    if IMPORTANCE:
        row_at, column_at, shift_at = row_out + next_rows, column_out + next_columns, shift_out + n_tiles
        _store_log_sums(weight, row_keep, column_keep, row_valid, column_valid, row_at, column_at, shift_at,
                        LOGS, COLUMNS, row_limits is not None)
    if row_groups is not None:
        row_at, column_at, shift_at = row_out + 2 * next_rows, column_out + 2 * next_columns, shift_out + 2 * n_tiles
        # Most rows have no mate in a tile: their sum of 0 is no underflow.
        row_mates, column_mates = tl.sum(mates.to(tl.float32), 1), tl.sum(mates.to(tl.float32), 0)
        _store_log_sums(tl.where(mates, z, float("-inf")), mates, mates, row_mates > 0, column_mates > 0,
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
        _store_target_sums(scores, z * LN_2, row_valid, column_valid, row_at, column_at, shift_at, next_rows, next_columns,
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


@triton.jit
def _store_log_sums(
    values, row_keep, column_keep, row_valid, column_valid, row_at, column_at, shift_at,
    LOGS: tl.constexpr, COLUMNS: tl.constexpr, LIMITS: tl.constexpr,
):
    """Write the sums of powers of two of the rows and columns of a tile, and their shift.

    Values that neither rows nor columns keep are -inf. With LIMITS, rows and columns keep different pairs.
    """
    if LOGS:
        row_values, column_values = values, values
        if LIMITS:
            row_values = tl.where(row_keep, values, float("-inf"))
            if COLUMNS:
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
def _store_target_sums(
    scores, logits, row_valid, column_valid, row_at, column_at, shift_at, next_rows, next_columns,
    LOGS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Write the mean logits, weighted by powers of two of the scores, and in the next part the sums of these powers."""
    if LOGS:
        norms, means = _log_sums_and_means(scores, logits, 1)
        tl.store(row_at, means)
        tl.store(row_at + next_rows, norms)
        if COLUMNS:
            norms, means = _log_sums_and_means(scores, logits, 0)
            tl.store(column_at, means)
            tl.store(column_at + next_columns, norms)
        tl.store(shift_at, float("inf"))
    else:
        top = tl.max(scores)
        shift = tl.maximum(top, NOTHING) - HEADROOM
        power = tl.exp2(scores - shift)
        totals = tl.sum(power, 1)
        tl.store(row_at, tl.sum(power * logits, 1) / tl.maximum(totals, LEAST))
        tl.store(row_at + next_rows, totals)
        least = tl.min(tl.where(row_valid, totals, 1.0))
        if COLUMNS:
            totals = tl.sum(power, 0)
            tl.store(column_at, tl.sum(power * logits, 0) / tl.maximum(totals, LEAST))
            tl.store(column_at + next_columns, totals)
            least = tl.minimum(least, tl.min(tl.where(column_valid, totals, 1.0)))
        tl.store(shift_at, tl.where((least < LEAST) & (top > NOTHING), float("inf"), shift))


@triton.jit
def _log_sums(values, AXIS: tl.constexpr):
    """Return the base-2 logarithms of the sums of powers of two along an axis, for values of any range."""
    top = tl.maximum(tl.max(values, AXIS), NOTHING)
    return tl.log2(tl.sum(tl.exp2(values - tl.expand_dims(top, AXIS)), AXIS)) + top


@triton.jit
def _log_sums_and_means(scores, logits, AXIS: tl.constexpr):
    """Return `_log_sums` of the scores, and the mean logits weighted by their powers of two."""
    top = tl.maximum(tl.max(scores, AXIS), NOTHING)
    power = tl.exp2(scores - tl.expand_dims(top, AXIS))
    total = tl.sum(power, AXIS)
    return tl.log2(total) + top, tl.sum(power * logits, AXIS) / tl.maximum(total, LEAST)
