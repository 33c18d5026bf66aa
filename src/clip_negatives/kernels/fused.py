"""Backend "triton": the sums over pairs by fused kernels, without a matrix of all pairs, on CUDA devices.

Forward, one kernel goes over the tiles of the matrix and writes the sums of each; backward, a second computes each tile again
and writes the slopes of a chunk of rows, which two matrix products turn into gradients. That is ``8 B G D`` operations for both
passes where open_clip's dense loss takes ``12 B G D``. Weights cost two look-ups in the tile. Nothing is added up by atomics:
results are the same every time. Nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from clip_negatives.kernels import tiles
from clip_negatives.kernels.pairs import IMPORTANCE, KEPT, LOGARITHMIC, NEGATIVES, Pairs, PairSums, Side, add_sums, empty_sums
from clip_negatives.kernels.support import interpreted

SLOPES_BYTES = 256 * 2**20
"""Memory of the slopes of a chunk of rows, if no chunk size is given."""

WIDE_TABLE_BYTES = 256 * 2**20
"""Up to this size the columns of a table are expanded to those of the samples, so that a tile reads them side by side."""

_MM_TAKES_OUT_DTYPE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)

LOG2_E, LN_2 = math.log2(math.e), math.log(2.0)


def forward(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, *, chunk_size: int | None = None
) -> PairSums:
    """Return the sums of the rows x, shape (B, D), and columns y, shape (G, D)."""
    problem = _Problem(x, y, scale, bias, pairs)
    n_parts = 6 if pairs.importance or pairs.count or pairs.rows.groups is not None else 1
    rows = empty_sums(len(x), x.new_empty(0, dtype=torch.float32))
    columns = empty_sums(len(y) if pairs.columns_too else 0, rows)
    written = [NEGATIVES] + [IMPORTANCE] * pairs.importance + [2, 3, 4] * (pairs.rows.groups is not None) + [KEPT] * pairs.count
    for start, stop in problem.chunks(chunk_size):
        down, across = problem.n_tiles(stop - start)
        height, width = problem.tile["BM"], problem.tile["BN"]
        of_rows = rows.new_empty(n_parts, across, down, height)
        of_columns = rows.new_empty(n_parts, down, across, width if pairs.columns_too else 0)
        shifts = rows.new_empty(n_parts, down, across)
        tiles.sums_kernel[(down * across,)](
            *problem.arguments(),
            of_rows,
            of_columns,
            shifts,
            *problem.sizes(stop - start, start),
            **problem.flags(),
            COUNT=pairs.count,
        )
        more = empty_sums(len(y) if pairs.columns_too else 0, rows)
        for part in written:
            rows[part, start:stop] = _total(of_rows[part], shifts[part].T, part)[: stop - start]
            if pairs.columns_too:
                more[part] = _total(of_columns[part], shifts[part], part)[: len(y)]
        add_sums(columns, more)
    return PairSums(rows, columns)


def _total(of_tiles: Tensor, shifts: Tensor, part: int) -> Tensor:
    """Return one of the sums of all rows, or columns, from those of the tiles, (tiles, tiles, samples), and their shifts."""
    if part >= LOGARITHMIC:
        return of_tiles.sum(0).flatten()
    return (of_tiles.log2() + shifts[:, :, None]).mul_(LN_2).logsumexp(0).flatten()


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
    problem = _Problem(x, y, scale, bias, pairs)
    # Slopes of a half-precision type must neither vanish nor overflow: the largest gradient becomes 1, and is put back below.
    # Those of the negatives have one sign, that of dL, as the loss rises with every one of them: it becomes plus.
    everything = torch.cat([side.flatten() for side in grads])
    largest = everything.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    of_negatives = torch.cat([side[NEGATIVES] for side in grads]).sum()
    factor = largest.copysign(of_negatives)
    scaled = [side / factor for side in grads]
    levels = [(side * LOG2_E).masked_fill(side == -torch.inf, torch.inf) for side in sums]
    for level, gradient in zip(levels, scaled, strict=True):
        level[NEGATIVES] -= gradient[NEGATIVES].clamp(min=0).log2()
    x_grad = x.new_empty(x.shape, dtype=torch.float32) if wants[0] else None
    y_grad = y.new_zeros(y.shape, dtype=torch.float32) if wants[1] else None
    chunks = problem.chunks(chunk_size)
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
            x_grad[start:stop] = _product(some, problem.y)
        if y_grad is not None:
            y_grad += _product(some.T, problem.x[start:stop])
    return tuple(None if grad is None else grad.mul_(factor) for grad in (x_grad, y_grad))  # type: ignore[return-value]


class _Problem:
    """Hold the arguments that both kernels share."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> None:
        dtype = torch.promote_types(x.dtype, y.dtype)
        self.pairs = pairs
        self.x, self.y = x.to(dtype).contiguous(), y.to(dtype).contiguous()
        self.scale, self.bias = scale, bias
        half = dtype != torch.float32
        self.image, self.image_wide = _table(pairs.image_table, pairs.columns.image_labels, half)
        self.text, self.text_wide = _table(pairs.text_table, pairs.columns.text_labels, half)
        self.rows, self.columns = _ready(pairs.rows, half), _ready(pairs.columns, half)
        if interpreted():
            self.tile = {"BM": 32, "BN": 32, "BK": 32, "BR": 16, "GROUP": 2}
        else:
            self.tile = {"BM": 128, "BN": 128 if half else 64, "BK": 64 if half else 32, "BR": 32, "GROUP": 8}
            self.tile |= {"num_warps": 8, "num_stages": 3}

    def n_tiles(self, n_rows: int) -> tuple[int, int]:
        """Return the tiles of some rows, down and across."""
        return -(-n_rows // self.tile["BM"]), -(-len(self.y) // self.tile["BN"])

    def chunks(self, size: int | None) -> list[tuple[int, int]]:
        """Return the chunks of rows, of whole tiles where no size is given."""
        if size is None:
            rows = SLOPES_BYTES // (len(self.y) * self.x.element_size())
            size = max(1, rows // self.tile["BM"]) * self.tile["BM"]
        size = min(size, max(1, (2**31 - 1) // len(self.y)))  # places in a chunk are 32-bit numbers
        return [(start, min(start + size, len(self.x))) for start in range(0, len(self.x), size)]

    def arguments(self) -> list[Any]:
        """Return the tensors."""
        return [self.x, self.y, self.scale, self.bias, self.image, self.text, *self.rows, *self.columns]

    def sizes(self, n_rows: int, start: int) -> list[Any]:
        """Return sizes and strides."""
        r = 0 if self.rows.factors is None else self.rows.factors.shape[1]
        strides = [0 if table is None else table.stride(0) for table in (self.image, self.text)]
        pairs = self.pairs
        return [n_rows, len(self.y), start, self.x.shape[1], r, pairs.offset, pairs.hardness or None, *strides]

    def flags(self) -> dict[str, Any]:
        """Return what the kernels are compiled for."""
        exact = torch.get_float32_matmul_precision() == "highest"
        return {
            "IMPORTANCE": self.pairs.importance,
            "COLUMNS": self.pairs.columns_too,
            "WIDE_IMAGE": self.image_wide,
            "WIDE_TEXT": self.text_wide,
            "EVEN": self.x.shape[1] % self.tile["BK"] == 0,
            "PRECISION": "tf32x3" if exact else "tf32",
            **self.tile,
        }


def _table(table: Tensor | None, labels: Tensor | None, half: bool) -> tuple[Tensor | None, bool]:
    """Return a table in base 2, its columns expanded to the samples if that is not too large, and whether they were."""
    if table is None or labels is None:
        return None, False
    table = (table.float() * LOG2_E).to(torch.float16 if half else torch.float32)
    wide = len(table) * len(labels) * table.element_size() <= WIDE_TABLE_BYTES
    return (table.index_select(1, labels) if wide else table.contiguous()), wide


def _ready(side: Side, half: bool) -> Side:
    """Return what belongs to samples as the kernels read it."""
    factors = side.factors
    if factors is not None:
        factors = factors.to(torch.float16 if half else torch.float32).contiguous()
    limits = None if side.limits is None else (side.limits.float() * LOG2_E).contiguous()
    image, text, groups = (
        None if part is None else part.contiguous() for part in (side.image_labels, side.text_labels, side.groups)
    )
    return Side(image, text, factors, groups, limits)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product in float32, whatever the type of the factors."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda and _MM_TAKES_OUT_DTYPE:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float() if left.is_cuda else left.float() @ right.float()
