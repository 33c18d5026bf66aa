"""Sums of powers of two over the rows and columns of a tile.

The values of a tile are shifted so that the largest becomes ``2^HEADROOM``. Rows and columns then share one exponential for
each pair, with room for small values. If the sum of a row or column still underflows, the tile is computed again, with the
maximum of each row and column.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEADROOM = tl.constexpr(100.0)
LEAST = tl.constexpr(2.0**-90)  # below this, a sum may have lost values to underflow in float32
NOTHING = tl.constexpr(-1.0e30)  # replaces the maximum -inf of a tile without pairs


# fmt: off
@triton.jit
def store_log_sums(
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
def store_target_sums(
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
