"""Triton kernel of the totals: the sums of each anchor, from those of all its tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from clip_negatives.losses.kernels.wide_tables import finite_top

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NOTHING = tl.constexpr(-1.0e30)  # replaces the maximum -inf of no pairs
TINY = tl.constexpr(1.1754943508222875e-38)


# fmt: off
@triton.jit
def totals_kernel(
    tile_sums, shifts, image_top, text_top, out, n, next_out, n_tiles, next_tile, next_part, shift_step, shift_tile, shift_part,
    IMPORTANCE: tl.constexpr, GROUPS: tl.constexpr, COUNT: tl.constexpr, TARGETS: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr, TILES: tl.constexpr,
):
    """Write the sums of the anchors, ``out[part, anchor]``, from those of the tiles, ``tile_sums[part, tile, anchor]``.

    Each program adds up one row or column of tiles, for BLOCK anchors. With ADD, it adds the result to the sums in `out`. Parts
    that are not requested get the value of an empty sum.
    """
    program = tl.program_id(0)
    anchors = program * BLOCK + tl.arange(0, BLOCK)
    valid = anchors < n
    tile_sums += anchors
    shifts += program * shift_step
    out += anchors
    top = finite_top(image_top) + finite_top(text_top)
    for part in tl.static_range(3):
        if (part == 0) or (IMPORTANCE if part == 1 else GROUPS):
            level, norm, _ = _log_total(tile_sums + part * next_part, tile_sums, shifts + part * shift_part,
                                        n_tiles, next_tile, shift_tile, False, BLOCK, TILES)
            total = (tl.log2(norm) + level) * LN_2
            if part < 2:
                total += top
            if ADD:
                total = _logaddexp(total, tl.load(out + part * next_out, mask=valid, other=0.0))
            tl.store(out + part * next_out, total, mask=valid)
        elif not ADD:
            tl.store(out + part * next_out, tl.full((BLOCK,), float("-inf"), tl.float32), mask=valid)
    for part in tl.static_range(3, 6):
        if COUNT if part == 5 else GROUPS:
            total = _total(tile_sums + part * next_part, n_tiles, next_tile, BLOCK, TILES)
            if ADD:
                total += tl.load(out + part * next_out, mask=valid, other=0.0)
            tl.store(out + part * next_out, total, mask=valid)
        elif not ADD:
            tl.store(out + part * next_out, tl.zeros((BLOCK,), tl.float32), mask=valid)
    means, norms = out + 6 * next_out, out + 7 * next_out
    if TARGETS:
        level, norm, mean = _log_total(tile_sums + 7 * next_part, tile_sums + 6 * next_part, shifts + 7 * shift_part,
                                       n_tiles, next_tile, shift_tile, True, BLOCK, TILES)
        if ADD:
            previous = tl.load(norms, mask=valid, other=0.0) * LOG2_E
            higher = tl.maximum(level, previous)
            own, more = tl.exp2(level - higher), tl.exp2(previous - higher)
            mean = mean * own + tl.load(means, mask=valid, other=0.0) * more
            level, norm = higher, norm * own + more
        tl.store(means, mean / tl.maximum(norm, TINY), mask=valid)
        tl.store(norms, (tl.log2(norm) + level) * LN_2, mask=valid)
    elif not ADD:
        tl.store(means, tl.zeros((BLOCK,), tl.float32), mask=valid)
        tl.store(norms, tl.full((BLOCK,), float("-inf"), tl.float32), mask=valid)


@triton.jit
def _log_total(
    sums, means, shifts, n_tiles, next_tile, shift_tile, MEANS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):
    """Return level, norm and mean of all tiles.

    Their sum is ``2^level * norm``. The mean is the sum of the means of the tiles, each times its tile's part of `norm`.
    """
    level = tl.full((BLOCK,), NOTHING, tl.float32)
    norm, mean = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_tiles, TILES):
        tile = start + tl.arange(0, TILES)
        exists = tile < n_tiles
        at = tile.to(tl.int64)[:, None] * next_tile
        power = tl.load(sums + at, mask=exists[:, None], other=0.0)
        shift = tl.load(shifts + tile * shift_tile, mask=exists, other=0.0)[:, None]
        # The sums of a tile with an infinite shift are logarithms already.
        logs = tl.where(shift == float("inf"), power, tl.log2(power) + shift)
        logs = tl.where(exists[:, None], logs, float("-inf"))
        higher = tl.maximum(level, tl.max(logs, 0))
        shares, kept = tl.exp2(logs - higher[None, :]), tl.exp2(level - higher)
        norm = norm * kept + tl.sum(shares, 0)
        if MEANS:
            mean = mean * kept + tl.sum(shares * tl.load(means + at, mask=exists[:, None], other=0.0), 0)
        level = higher
    return level, norm, mean


@triton.jit
def _total(sums, n_tiles, next_tile, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Return the sum over all tiles."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n_tiles, TILES):
        tile = start + tl.arange(0, TILES)
        total += tl.sum(tl.load(sums + tile.to(tl.int64)[:, None] * next_tile, mask=(tile < n_tiles)[:, None], other=0.0), 0)
    return total


@triton.jit
def _logaddexp(left, right):
    """Return ``log(exp(left) + exp(right))``, also where both are -inf."""
    top = tl.maximum(tl.maximum(left, right), NOTHING)
    return top + tl.log(tl.exp(left - top) + tl.exp(right - top))
