"""Backend "triton": the sums over pairs by fused kernels, without a matrix of all pairs, on CUDA devices.

Forward, one kernel goes over the tiles of the matrix and writes the sums of each; backward, a second computes each tile again
and writes the slopes of a chunk of rows, which two matrix products turn into gradients. That is ``8 B G D`` operations for both
passes where open_clip's dense loss takes ``12 B G D``. Weights cost two look-ups in the tile. Nothing is added up by atomics:
results are the same every time. Nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from clip_negatives.kernels import tiles
from clip_negatives.kernels.pairs import IMPORTANCE, KEPT, LOGARITHMIC, NEGATIVES, Pairs, PairSums, add_sums, empty_sums
from clip_negatives.kernels.problem import LOG2_E, Problem

_MM_TAKES_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)

LN_2 = math.log(2.0)

SLOPES_BYTES = 64 * 2**20
"""Memory of the slopes of a chunk of rows, if no chunk size is given."""

ROWS_OF_PRODUCT = 8192
"""Rows of a half-precision product that are computed at a time."""

SUMS_BYTES = 32 * 2**20
"""The same of the sums of tiles."""

LARGEST = 2.0**12
"""Size of the largest gradient of a sum while slopes are computed, over 1 + hardness.

A slope has at most six such parts, so this is as high as the range of float16 allows: a share of 1e-8 of it does not vanish.
"""


def forward(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, *, chunk_size: int | None = None
) -> PairSums:
    """Return the sums of the rows x, shape (B, D), and columns y, shape (G, D)."""
    with torch.cuda.device_of(x):  # triton starts kernels on the current device, wherever tensors are
        return _forward(Problem(x, y, scale, bias, pairs), chunk_size)


def _forward(problem: Problem, chunk_size: int | None) -> PairSums:
    pairs, n_columns = problem.pairs, len(problem.y)
    grouped = pairs.rows.groups is not None
    written = [NEGATIVES] + [IMPORTANCE] * pairs.importance + [2, 3, 4] * grouped + [KEPT] * pairs.count
    n_parts = max(written) + 1
    rows = empty_sums(len(problem.x), problem.x.new_empty(0, dtype=torch.float32))
    columns = empty_sums(n_columns if pairs.columns_too else 0, rows)
    height, width = problem.tile["BM"], problem.tile["BN"]
    for start, stop in problem.chunks(chunk_size, SUMS_BYTES, 4.0 * n_parts * (1 / height + 1 / width)):
        down, across = problem.n_tiles(stop - start)
        of_rows = rows.new_empty(n_parts, across, down, height)
        of_columns = rows.new_empty(n_parts, down, across, width if pairs.columns_too else 0)
        shifts = rows.new_empty(n_parts, down, across)
        for logs in (False, True):
            tiles.sums_kernel[(down * across,)](
                *problem.arguments(),
                of_rows,
                of_columns,
                shifts,
                *problem.sizes(stop - start, start),
                **problem.flags(),
                LOGS=logs,
                COUNT=pairs.count and not logs,
            )
        more = empty_sums(columns.shape[1], rows)
        for part in written:
            rows[part, start:stop] = _total(of_rows[part], shifts[part].T, part)[: stop - start]
            if pairs.columns_too:
                more[part] = _total(of_columns[part], shifts[part], part)[:n_columns]
        add_sums(columns, more)
    for sums in (rows, columns):
        sums[: IMPORTANCE + 1] += problem.top
    return PairSums(rows, columns)


def _total(of_tiles: Tensor, shifts: Tensor, part: int) -> Tensor:
    """Return one of the sums of all rows, or columns, from those of the tiles, (tiles, tiles, samples), and their shifts."""
    if part >= LOGARITHMIC:
        return of_tiles.sum(0).flatten()
    shifts = shifts[:, :, None]
    logs = torch.where(shifts == torch.inf, of_tiles, of_tiles.log2() + shifts)
    return logs.mul_(LN_2).logsumexp(0).flatten()


def backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    pairs: Pairs,
    sums: PairSums,
    grads: PairSums,
    *,
    wants: tuple[bool, bool] = (True, True),
    chunk_size: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return ``S @ y`` and ``S.T @ x`` with S = dL/dlogits, float32; see `clip_negatives.kernels.chunked.backward`."""
    if not pairs.hardness:
        pairs = dataclasses.replace(pairs, importance=False)  # weights alone have no slope
    with torch.cuda.device_of(x):
        problem = Problem(x, y, scale, bias, pairs)
        factor = _factor(grads, pairs.hardness)
        levels, scaled = _levels(problem, sums, grads, factor)
        x_grad = x.new_empty(x.shape, dtype=torch.float32) if wants[0] else None
        y_grad = y.new_zeros(y.shape, dtype=torch.float32) if wants[1] else None
        d = x.shape[1]
        chunks = problem.chunks(chunk_size, SLOPES_BYTES, problem.x.element_size())
        slopes = x.new_empty(max(stop - start for start, stop in chunks), len(y), dtype=problem.x.dtype)
        for start, stop in chunks:
            row_tiles, column_tiles = problem.n_tiles(stop - start)
            tiles.slopes_kernel[(row_tiles * column_tiles,)](
                *problem.arguments(),
                levels[0],
                scaled[0],
                levels[1],
                scaled[1],
                slopes,
                len(x),
                *problem.sizes(stop - start, start),
                **problem.flags(),
            )
            some = slopes[: stop - start]
            if x_grad is not None:
                x_grad[start:stop] = _product(some, problem.y[:, :d])
            if y_grad is not None:
                _add_product(y_grad, some.T, problem.x[start:stop, :d])
        return tuple(None if grad is None else grad.mul_(factor) for grad in (x_grad, y_grad))  # type: ignore[return-value]


def _factor(grads: PairSums, hardness: float) -> Tensor:
    """Return what gradients are divided by, so that slopes of a half-precision type neither vanish nor overflow.

    Its sign is that of the gradients of the negatives, which all have that of dL, as the loss rises with every one of them:
    they become positive.
    """
    everything = torch.cat([side.flatten() for side in grads])
    factor = everything.abs().amax() * ((1 + hardness) / LARGEST)
    of_negatives = torch.cat([side[NEGATIVES] for side in grads]).sum()
    return factor.clamp(min=torch.finfo(torch.float32).tiny).copysign(of_negatives)  # none may be 0


def _levels(problem: Problem, sums: PairSums, grads: PairSums, factor: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the kernel subtracts before it takes powers of two, and the gradients by the factor, of rows and columns."""
    levels, scaled = [], []
    for side, gradients in zip(sums, grads, strict=True):
        level = side * LOG2_E
        level[: IMPORTANCE + 1] -= problem.top * LOG2_E
        level.masked_fill_(side == -torch.inf, torch.inf)
        scaled.append(gradients / factor)
        level[NEGATIVES] -= scaled[-1][NEGATIVES].clamp(min=0).log2()
        levels.append(level)
    return levels, scaled


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `total`, float32, some rows at a time: a product of its size would be held beside it."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
        return
    for start in range(0, len(total), ROWS_OF_PRODUCT):
        part = slice(start, start + ROWS_OF_PRODUCT)
        total[part] += _product(left[part], right)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product in float32, whatever the type of the factors."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda and _MM_TAKES_OUT_DTYPE:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float() if left.is_cuda else left.float() @ right.float()
