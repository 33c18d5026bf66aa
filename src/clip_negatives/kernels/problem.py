"""What the fused kernels are started with: features, tables, what belongs to samples, and the size of the tiles."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import UnsupportedError
from clip_negatives.kernels.pairs import Pairs, Side
from clip_negatives.kernels.support import interpreted, one_tf32_product

WIDE_TABLE_BYTES = 64 * 2**20
"""Up to this size the columns of a table are expanded to those of the samples, so that a tile reads them side by side."""

WIDE_TABLE_SHARE = 1 / 32
"""The same as a share of what the logits of all pairs would take, where that is more."""

LOG2_E = math.log2(math.e)


class Table(NamedTuple):
    """Hold a table as the kernels read it.

    Attributes:
        values: of base 2, a column for each sample, if it is wide; else as it came.
        wide: whether it is.
        top: what was taken off every entry, a scalar; None if nothing was.
    """

    values: Tensor | None = None
    wide: bool = False
    top: Tensor | None = None


class Problem:
    """Hold the arguments that both kernels share.

    Attributes:
        x: rows, their features filled up with zeros to whole steps of the product.
        y: columns, likewise.
        top: what is missing in the log-weights of every pair, a scalar, or 0.
        tile: sizes of the tiles and options of the compiler.
    """

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs) -> None:
        dtype = torch.promote_types(x.dtype, y.dtype)
        half = dtype != torch.float32
        self.pairs, self.scale, self.bias = pairs, scale, bias
        self.image = _table(pairs.image_table, pairs.columns.image_labels, pairs.rows, half)
        self.text = _table(pairs.text_table, pairs.columns.text_labels, pairs.rows, half)
        self.top = sum(table.top for table in (self.image, self.text) if table.top is not None)
        self.tile = tile_of(pairs, half=half, direct=self._reads_directly())
        self.x, self.y = (_filled_up(side.to(dtype), self.tile["BK"]) for side in (x, y))
        self.rows, self.columns = (_ready(side, half, self.tile["BR"]) for side in (pairs.rows, pairs.columns))

    def _reads_directly(self) -> bool:
        """Return whether any table is not wide."""
        return any(table.values is not None and not table.wide for table in (self.image, self.text))

    def n_tiles(self, n_rows: int) -> tuple[int, int]:
        """Return the tiles of some rows, down and across."""
        return -(-n_rows // self.tile["BM"]), -(-len(self.y) // self.tile["BN"])

    def chunks(self, size: int | None, memory: int, bytes_of_pair: float) -> list[tuple[int, int]]:
        """Return the chunks of rows; where no size is given, of whole tiles, as many as fit into the memory."""
        if size is None:
            rows = int(memory / (len(self.y) * bytes_of_pair))
            size = max(1, rows // self.tile["BM"]) * self.tile["BM"]
        size = min(size, max(1, (2**31 - 1) // len(self.y)))  # places in a chunk are 32-bit numbers
        return [(start, min(start + size, len(self.x))) for start in range(0, len(self.x), size)]

    def arguments(self) -> list[Any]:
        """Return the tensors."""
        tensors = [self.x, self.y, self.scale, self.bias, self.image.values, self.text.values]
        return [*tensors, *self.rows, *self.columns]

    def sizes(self, n_rows: int, start: int) -> list[Any]:
        """Return sizes and strides."""
        r = 0 if self.rows.factors is None else self.rows.factors.shape[1]
        pairs = self.pairs
        strides = [stride for table in (self.image, self.text) for stride in _strides(table.values)]
        return [n_rows, len(self.y), start, self.x.shape[1], r, pairs.offset, pairs.hardness or None, *strides]

    def flags(self) -> dict[str, Any]:
        """Return what the kernels are compiled for."""
        return {
            "IMPORTANCE": self.pairs.importance,
            "COLUMNS": self.pairs.columns_too,
            "WIDE_IMAGE": self.image.wide,
            "WIDE_TEXT": self.text.wide,
            "PRECISION": "tf32" if one_tf32_product() else "tf32x3",
            **self.tile,
        }


def tile_of(pairs: Pairs, *, half: bool, direct: bool) -> dict[str, int]:
    """Return the size of the tiles and options of the compiler.

    What needs more numbers for each pair gets smaller tiles, as registers would spill; tests/kernels/test_machine_code.py holds
    that they do not. `direct` says that a table is read that was not expanded.
    """
    if interpreted():
        return {"BM": 32, "BN": 32, "BK": 32, "BR": 16, "GROUP": 2}
    more = direct + (pairs.rows.factors is not None) + (pairs.rows.limits is not None) + (pairs.hardness > 0)
    more += 2 * (pairs.rows.groups is not None)
    height, width = [(128, 128), (128, 64), (64, 64)][min(more, 2)]
    compiler = {"BR": 32, "GROUP": 8, "num_warps": 8, "num_stages": 3}
    if half:
        return {"BM": height, "BN": width, "BK": 64} | compiler
    height, width = [(128, 64), (64, 64), (64, 32)][min(more, 2)]  # an entry of a tile of float32 takes two products more
    return {"BM": height, "BN": width, "BK": 32} | compiler


def _table(table: Tensor | None, labels: Tensor | None, rows: Side, half: bool) -> Table:
    """Return a table as the kernels read it."""
    if table is None or labels is None:
        return Table()
    if table.numel() >= 2**31:
        raise UnsupportedError(
            f"Expected tables of fewer than 2^31 entries for the triton backend, got {tuple(table.shape)}. Use 'chunked'."
        )
    dtype = torch.float16 if half else torch.float32
    size = len(labels) * dtype.itemsize
    n_rows = next(len(part) for part in rows if part is not None)
    if len(table) * size > max(WIDE_TABLE_BYTES, WIDE_TABLE_SHARE * n_rows * size):
        return Table(table)
    top = None
    if half:
        # float16 has its digits around 0, where the largest weights, which count, are put.
        top = table.amax().float()
        top = top.masked_fill(top == -torch.inf, 0.0)
        less = (-LOG2_E * top).expand(1, 1)
    else:
        less = torch.zeros(1, 1, device=table.device)
    values = torch.add(less, table, alpha=LOG2_E, out=table.new_empty(table.shape, dtype=dtype))
    return Table(values.index_select(1, labels), True, top)


def _strides(table: Tensor | None) -> tuple[int, int]:
    return (0, 0) if table is None else (table.stride(0), table.stride(1))


def _filled_up(features: Tensor, multiple: int) -> Tensor:
    """Return contiguous features with zeros at the end, so that their number is a multiple."""
    return F.pad(features, (0, -features.shape[1] % multiple)).contiguous()


def _ready(side: Side, half: bool, multiple: int) -> Side:
    """Return what belongs to samples as the kernels read it."""
    factors = side.factors
    if factors is not None:
        factors = _filled_up(factors.to(torch.float16 if half else torch.float32), multiple)
    limits = None if side.limits is None else (side.limits.float() * LOG2_E).contiguous()
    image, text, groups = (
        None if part is None else part.contiguous() for part in (side.image_labels, side.text_labels, side.groups)
    )
    return Side(image, text, factors, groups, limits)
