"""Backend "triton": sums over pairs by fused kernels on CUDA devices, without a matrix of all pairs.

In the forward pass, one kernel writes the sums of each tile of the matrix. In the backward pass, a second kernel computes each
tile again and writes the slopes (dL/dlogits) of a chunk of rows; two matrix products turn slopes into gradients. Both passes
take ``8 B G D`` operations; open_clip's loss takes ``12 B G D``. Without atomics, results are reproducible. Nothing waits for
the GPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clip_negatives.losses.kernels import tiles
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.problem import LOG2_E, Problem
from clip_negatives.losses.kernels.sums import IMPORTANCE, KEPT, LOG_SUMS, NEGATIVES, PairSums, add_sums, empty_sums

_MM_TAKES_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
LN_2 = math.log(2.0)
SLOPES_BYTES = 64 * 2**20  # memory for the slopes of a chunk of rows, if no chunk size is given
SUMS_BYTES = 32 * 2**20  # memory for the sums of tiles, if no chunk size is given
ROWS_OF_PRODUCT = 8192  # rows of a half-precision product computed at a time
# For half-precision slopes, the gradients of the sums are scaled: the largest, times 1 + hardness, gets this size. A slope adds
# up at most six of them, which float16 can hold; gradients that are 1e-8 times smaller do not vanish.
LARGEST = 2.0**12


def forward(inputs: Inputs, pairs: Pairs, *, chunk_size: int | None = None) -> PairSums:
    """Return the sums of the rows and columns."""
    with torch.cuda.device_of(inputs.x):  # triton starts kernels on the current device, not on the device of the tensors
        return _forward(Problem(inputs, pairs), chunk_size)


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
        row_sums = rows.new_empty(n_parts, across, down, height)
        column_sums = rows.new_empty(n_parts, down, across, width if pairs.columns_too else 0)
        shifts = rows.new_empty(n_parts, down, across)
        for logs in (False, True):
            arguments = (*problem.arguments(), row_sums, column_sums, shifts, *problem.sizes(stop - start, start))
            tiles.sums_kernel[(down * across,)](*arguments, **problem.flags(), LOGS=logs, COUNT=pairs.count and not logs)
        chunk_columns = empty_sums(columns.shape[1], rows)
        for part in written:
            rows[part, start:stop] = _total(row_sums[part], shifts[part].T, part)[: stop - start]
            if pairs.columns_too:
                chunk_columns[part] = _total(column_sums[part], shifts[part], part)[:n_columns]
        add_sums(columns, chunk_columns)
    for sums in (rows, columns):
        sums[: IMPORTANCE + 1] += problem.top
    return PairSums(rows, columns)


def _total(tile_sums: Tensor, shifts: Tensor, part: int) -> Tensor:
    """Return one sum of all rows or columns from the sums of the tiles, (tiles, tiles, samples), and their shifts."""
    if part >= LOG_SUMS:
        return tile_sums.sum(0).flatten()
    shifts = shifts[:, :, None]
    logs = torch.where(shifts == torch.inf, tile_sums, tile_sums.log2() + shifts)
    return logs.mul_(LN_2).logsumexp(0).flatten()


def backward(
    inputs: Inputs, pairs: Pairs, sums: PairSums, grads: PairSums, wants: Sequence[bool], *, chunk_size: int | None = None
) -> list[Tensor | None]:
    """Return ``S @ y`` and ``S.T @ x`` with S = dL/dlogits, float32; see `clip_negatives.losses.kernels.chunked.backward`."""
    x, y = inputs.x, inputs.y
    if not pairs.hardness:
        pairs = dataclasses.replace(pairs, importance=False)  # does not depend on the logits
    with torch.cuda.device_of(x):
        problem = Problem(inputs, pairs)
        factor = _factor(grads, pairs.hardness)
        levels = _levels(problem, sums, grads, factor)
        x_grad = x.new_empty(x.shape, dtype=torch.float32) if wants[0] else None
        y_grad = y.new_zeros(y.shape, dtype=torch.float32) if wants[1] else None
        d = x.shape[1]
        chunks = problem.chunks(chunk_size, SLOPES_BYTES, problem.x.element_size())
        slopes = x.new_empty(max(stop - start for start, stop in chunks), len(y), dtype=problem.x.dtype)
        for start, stop in chunks:
            row_tiles, column_tiles = problem.n_tiles(stop - start)
            arguments = (*problem.arguments(), *levels, slopes, len(x), *problem.sizes(stop - start, start))
            tiles.slopes_kernel[(row_tiles * column_tiles,)](*arguments, **problem.flags())
            chunk = slopes[: stop - start]
            if x_grad is not None:
                x_grad[start:stop] = _product(chunk, problem.y[:, :d])
            if y_grad is not None:
                _add_product(y_grad, chunk.T, problem.x[start:stop, :d])
        return [None if grad is None else grad.mul_(factor) for grad in (x_grad, y_grad)]


def _factor(grads: PairSums, hardness: float) -> Tensor:
    """Return a number to divide the gradients by, so that half-precision slopes neither underflow nor overflow.

    The loss grows with every negative, so all gradients of the negatives have one sign; the divisor makes them positive.
    """
    gradients = torch.cat([side.flatten() for side in grads])
    factor = gradients.abs().amax() * ((1 + hardness) / LARGEST)
    negatives_grad = torch.cat([side[NEGATIVES] for side in grads]).sum()
    return factor.clamp(min=torch.finfo(torch.float32).tiny).copysign(negatives_grad)  # never 0


def _levels(problem: Problem, sums: PairSums, grads: PairSums, factor: Tensor) -> list[Tensor]:
    """Return levels and scaled gradients of the rows, then of the columns; the kernel subtracts levels from exponents."""
    levels = []
    for side, gradients in zip(sums, grads, strict=True):
        level = side * LOG2_E
        level[: IMPORTANCE + 1] -= problem.top * LOG2_E
        level.masked_fill_(side == -torch.inf, torch.inf)
        scaled = gradients / factor
        level[NEGATIVES] -= scaled[NEGATIVES].clamp(min=0).log2()
        levels += [level, scaled]
    return levels


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `total`, float32, in blocks of rows: no second matrix of this size is held."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
        return
    for start in range(0, len(total), ROWS_OF_PRODUCT):
        part = slice(start, start + ROWS_OF_PRODUCT)
        total[part] += _product(left[part], right)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product in float32, for factors of any type."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda and _MM_TAKES_OUT_DTYPE:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float() if left.is_cuda else left.float() @ right.float()
