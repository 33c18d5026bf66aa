"""Backend "triton": sums over pairs by fused kernels on CUDA devices, without a matrix of all pairs.

In the forward pass, one kernel writes the sums of each tile of the matrix, and another adds them up. In the backward pass, a
kernel computes each tile again and writes the slopes (dL/dlogits) of a block of pairs; two matrix products turn slopes into
gradients. Both passes take ``8 B G D`` operations; open_clip's loss takes ``12 B G D``. Without atomics, results are
reproducible. Nothing waits for the GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clip_negatives.losses.kernels import slopes, tile_sums, totals
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.problem import LOG2_E, Problem
from clip_negatives.losses.kernels.sums import IMPORTANCE, KEPT, NEGATIVES, TARGET_NORM, PairSums

# Not in torch 2.7.
_ADDMM_TAKES_OUT_DTYPE = "dtype_out" in torch.ops.aten.addmm.overloads()
# Memory for the slopes of a block. Each block reads and writes the gradients of its rows and columns. A square block keeps this
# traffic smallest.
SLOPES_BYTES = 64 * 2**20
SUMS_BYTES = 32 * 2**20  # memory for the sums of tiles, if no chunk size is given
UNDERFLOW_PROGRAMS = 1024  # programs that look for tiles with underflow: a few for each multiprocessor
TILES_OF_TOTALS = 16  # tiles whose sums are added up at a time
# For half-precision slopes, the gradients of the sums are scaled: the largest, times 1 + hardness, gets this size. A slope adds
# up at most six of them, which float16 can hold; gradients that are 1e-8 times smaller do not vanish.
LARGEST = 2.0**12


class Levels(NamedTuple):
    """Levels (subtracted from exponents) and gradients (multiplied), for rows and columns, each (parts, n) with unit stride."""

    rows: Tensor
    row_grads: Tensor
    columns: Tensor
    column_grads: Tensor


def forward(inputs: Inputs, pairs: Pairs, *, chunk_size: int | None = None) -> PairSums:
    """Return the sums of the rows and columns."""
    with torch.cuda.device_of(inputs.x):  # triton starts kernels on the current device, not on the device of the tensors
        n_columns = len(inputs.y) if pairs.columns_too else 0
        sums = PairSums(*(inputs.x.new_empty(TARGET_NORM + 1, n, dtype=torch.float32) for n in (len(inputs.x), n_columns)))
        write_sums(Problem(inputs, pairs), sums, chunk_size)
        return sums


def write_sums(problem: Problem, sums: PairSums, chunk_size: int | None) -> None:
    """Write the sums of the rows and columns; in each row of `sums`, the parts are neighbours."""
    pairs, n_columns = problem.pairs, len(problem.y)
    parts = {
        "IMPORTANCE": pairs.importance,
        "GROUPS": pairs.rows.groups is not None,
        "COUNT": pairs.count,
        "TARGETS": pairs.targeted,
    }
    last = [NEGATIVES, IMPORTANCE * parts["IMPORTANCE"], 4 * parts["GROUPS"], KEPT * pairs.count, TARGET_NORM * pairs.targeted]
    n_parts, height, width = max(last) + 1, problem.tile["BM"], problem.tile["BN"]
    for rows, columns in problem.blocks(chunk_size, SUMS_BYTES / (4 * n_parts * (1 / height + 1 / width)), n_columns):
        down, across = problem.n_tiles(rows.stop - rows.start, n_columns)
        row_sums = sums.rows.new_empty(n_parts, across, down, height)
        column_sums = sums.rows.new_empty(n_parts, down, across, width if pairs.columns_too else 0)
        shifts = sums.rows.new_empty(n_parts, down, across)
        arguments = *problem.arguments(rows, columns), row_sums, column_sums, shifts, *problem.sizes(rows, columns)
        for programs, logs in ((down * across, False), (min(down * across, UNDERFLOW_PROGRAMS), True)):
            tile_sums.sums_kernel[(programs,)](*arguments, **problem.flags(), LOGS=logs, COUNT=pairs.count and not logs)
        sides = [(sums.rows[:, rows], row_sums, down, across, (across, 1), height, False)]
        if pairs.columns_too:
            sides.append((sums.columns, column_sums, across, down, (1, across), width, rows.start > 0))
        for out, partial, programs, n_tiles, shift_strides, block, add in sides:
            sizes = out.shape[1], out.stride(0), n_tiles, programs * block, partial.stride(0), *shift_strides, down * across
            options = parts | {"ADD": add, "BLOCK": block, "TILES": TILES_OF_TOTALS}
            totals.totals_kernel[(programs,)](partial, shifts, *problem.tops, out, *sizes, **options)


def backward(
    inputs: Inputs, pairs: Pairs, sums: PairSums, grads: PairSums, wants: Sequence[bool], *, chunk_size: int | None = None
) -> list[Tensor | None]:
    """Return ``S @ y`` and ``S.T @ x`` with S = dL/dlogits, float32; see `clip_negatives.losses.kernels.chunked.backward`."""
    if not pairs.hardness:
        pairs = dataclasses.replace(pairs, importance=False)  # does not depend on the logits
    with torch.cuda.device_of(inputs.x):
        problem = Problem(inputs, pairs)
        factor = _factor(grads, pairs)
        products = slope_products(problem, _levels(problem, sums, grads, factor), wants, inputs.x.shape[1], chunk_size)
        return [None if product is None else product.mul_(factor) for product in products]


def slope_products(
    problem: Problem, levels: Levels, wants: Sequence[bool], d: int, chunk_size: int | None
) -> list[Tensor | None]:
    """Return the products of the slopes with the features of columns and of rows, float32, shape (B, d) and (G, d)."""
    sides = problem.x, problem.y
    products = [
        side.new_empty(len(side), d, dtype=torch.float32) if want else None for side, want in zip(sides, wants, strict=True)
    ]
    n_pairs = SLOPES_BYTES // problem.x.element_size()
    blocks = problem.blocks(chunk_size, n_pairs, math.isqrt(n_pairs))
    down, across = problem.n_tiles(max(rows.stop - rows.start for rows, _ in blocks), blocks[0][1].stop)
    memory = problem.x.new_empty(down * problem.tile["BM"], across * problem.tile["BN"])
    for rows, columns in blocks:
        shape = rows.stop - rows.start, columns.stop - columns.start
        own = levels.rows[:, rows], levels.row_grads[:, rows], levels.columns[:, columns], levels.column_grads[:, columns]
        strides = levels.rows.stride(0), levels.columns.stride(0), memory.stride(0)
        arguments = *problem.arguments(rows, columns), *own, memory, *strides, *problem.sizes(rows, columns)
        n_programs = math.prod(problem.n_tiles(*shape))
        slopes.slopes_kernel[(n_programs,)](*arguments, **problem.flags(), SIGNS=problem.pairs.mixed_signs)
        block = memory[: shape[0], : shape[1]]
        if products[0] is not None:
            _add_product(products[0][rows], block, problem.y[columns, :d], first=columns.start == 0)
        if products[1] is not None:
            _add_product(products[1][columns], block.T, problem.x[rows, :d], first=rows.start == 0)
    return products


def _factor(grads: PairSums, pairs: Pairs) -> Tensor:
    """Return a number to divide the gradients by, so that half-precision slopes neither underflow nor overflow.

    Without `mixed_signs`, the loss grows with every negative, so the gradients of all negatives have the same sign. The divisor
    has this sign and makes them positive. With `mixed_signs`, the divisor is positive.
    """
    gradients = torch.cat([side.flatten() for side in grads])
    factor = (gradients.abs().amax() * ((1 + pairs.hardness) / LARGEST)).clamp(min=torch.finfo(torch.float32).tiny)
    return factor if pairs.mixed_signs else factor.copysign(torch.cat([side[NEGATIVES] for side in grads]).sum())


def _levels(problem: Problem, sums: PairSums, grads: PairSums, factor: Tensor) -> Levels:
    """Return levels and scaled gradients."""
    levels = []
    for side, gradients in zip(sums, grads, strict=True):
        level = side * LOG2_E
        for top in problem.tops:
            if top is not None:
                level[: IMPORTANCE + 1] -= top.masked_fill(top == -torch.inf, 0.0) * LOG2_E
        level.masked_fill_(side == -torch.inf, torch.inf)
        scaled = gradients / factor
        level[NEGATIVES] -= scaled[NEGATIVES].abs().log2()
        levels += [level, scaled]
    return Levels(*levels)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add a matrix product to `total`, float32; the `first` one replaces it."""
    beta = 0 if first else 1
    if left.dtype == torch.float32:
        total.addmm_(left, right, beta=beta)
    elif not left.is_cuda:
        total.addmm_(left.float(), right.float(), beta=beta)
    elif _ADDMM_TAKES_OUT_DTYPE:
        torch.addmm(total, left, right, out_dtype=torch.float32, beta=beta, out=total)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right
