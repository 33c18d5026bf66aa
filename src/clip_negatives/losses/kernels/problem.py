"""Arguments of the fused kernels: features, tables, per-sample fields, and tile sizes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import UnsupportedError
from clip_negatives.losses.backends import interpreted, one_tf32_product
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.terms import LossTerms

WIDE_TABLE_BYTES = 64 * 2**20  # largest table with one column per sample, from which a tile reads contiguous memory
WIDE_TABLE_SHARE = 1 / 32  # the same limit as a share of the matrix of all logits; the larger limit applies
LOG2_E = math.log2(math.e)


class Table(NamedTuple):
    """A table as the kernels read it."""

    values: Tensor | None = None  # if wide: in base 2, one column per sample; otherwise the table itself
    wide: bool = False
    top: Tensor | None = None  # constant subtracted from every entry, a scalar


class Problem:
    """Arguments that both kernels share; features are padded with zeros to whole steps of the product."""

    def __init__(self, inputs: Inputs, pairs: Pairs) -> None:
        x, y, self.scale, self.bias = inputs
        dtype = torch.promote_types(x.dtype, y.dtype)
        half = dtype != torch.float32
        self.pairs = pairs
        rows, columns = pairs.rows, pairs.columns
        self.image = _table(rows.image_table, columns.image_labels, len(x), half)
        self.text = _table(rows.text_table, columns.text_labels, len(x), half)
        tables = (self.image, self.text)
        # This constant is subtracted from every log-weight, and added back to the sums.
        self.top = sum(table.top for table in tables if table.top is not None)
        direct = any(table.values is not None and not table.wide for table in tables)
        self.tile = tile_of(pairs, half=half, direct=direct)
        self.x, self.y = (_padded(side.to(dtype), self.tile["BK"]) for side in (x, y))
        self.rows = _samples(rows, pairs.row_limits, half, self.tile["BR"])
        self.columns = _samples(columns, pairs.column_limits, half, self.tile["BR"])

    def n_tiles(self, n_rows: int) -> tuple[int, int]:
        """Return the number of tiles of `n_rows` rows, down and across."""
        return -(-n_rows // self.tile["BM"]), -(-len(self.y) // self.tile["BN"])

    def chunks(self, size: int | None, memory: int, bytes_of_pair: float) -> list[tuple[int, int]]:
        """Return start and stop of each chunk of rows; without `size`, a chunk has as many whole tiles as fit in `memory`."""
        if size is None:
            rows = int(memory / (len(self.y) * bytes_of_pair))
            size = max(1, rows // self.tile["BM"]) * self.tile["BM"]
        size = min(size, max(1, (2**31 - 1) // len(self.y)))  # offsets within a chunk are int32
        return [(start, min(start + size, len(self.x))) for start in range(0, len(self.x), size)]

    def arguments(self) -> list[Any]:
        """Return the tensor arguments."""
        return [self.x, self.y, self.scale, self.bias, self.image.values, self.text.values, *self.rows, *self.columns]

    def sizes(self, n_rows: int, start: int) -> list[Any]:
        """Return the sizes and strides."""
        pairs, factors = self.pairs, self.rows[2]
        r = 0 if factors is None else factors.shape[1]
        tables = (self.image.values, self.text.values)
        strides = [stride for table in tables for stride in ((0, 0) if table is None else table.stride())]
        return [n_rows, len(self.y), start, self.x.shape[1], r, pairs.offset, pairs.hardness or None, *strides]

    def flags(self) -> dict[str, Any]:
        """Return the compile-time constants."""
        tables = {"WIDE_IMAGE": self.image.wide, "WIDE_TEXT": self.text.wide}
        precision = "tf32" if one_tf32_product() else "tf32x3"
        options = {"IMPORTANCE": self.pairs.importance, "COLUMNS": self.pairs.columns_too, "PRECISION": precision}
        return options | tables | self.tile


def tile_of(pairs: Pairs, *, half: bool, direct: bool) -> dict[str, int]:
    """Return the tile size and compiler options; `direct` is whether a table is not wide.

    Pairs that need more registers get smaller tiles; tests/losses/kernels/test_machine_code.py checks register spills.
    """
    if interpreted():
        return {"BM": 32, "BN": 32, "BK": 32, "BR": 16, "GROUP": 2}
    extra = direct + (pairs.rows.factors is not None) + (pairs.row_limits is not None) + (pairs.hardness > 0)
    extra += 2 * (pairs.rows.groups is not None)
    # float32 takes three products instead of one
    sizes = [(128, 128), (128, 64), (64, 64)] if half else [(128, 64), (64, 64), (64, 32)]
    height, width = sizes[min(extra, 2)]
    return {"BM": height, "BN": width, "BK": 64 if half else 32, "BR": 32, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def _table(table: Tensor | None, labels: Tensor | None, n_rows: int, half: bool) -> Table:
    if table is None or labels is None:
        return Table()
    if table.numel() >= 2**31:
        limit = "The triton backend takes tables of fewer than 2^31 entries"
        raise UnsupportedError(f"{limit}, got {tuple(table.shape)}. Use backend 'chunked'.")
    dtype = torch.float16 if half else torch.float32
    size = len(labels) * dtype.itemsize
    if len(table) * size > max(WIDE_TABLE_BYTES, WIDE_TABLE_SHARE * n_rows * size):
        return Table(table)
    top, shift = None, torch.zeros(1, 1, device=table.device)
    if half:  # float16 is most exact around 0: shift the largest weights, which matter most, to 0
        top = table.amax().float()
        top = top.masked_fill(top == -torch.inf, 0.0)
        shift = (-LOG2_E * top).expand(1, 1)
    values = torch.add(shift, table, alpha=LOG2_E, out=table.new_empty(table.shape, dtype=dtype))
    return Table(values.index_select(1, labels), True, top)


def _padded(features: Tensor, multiple: int) -> Tensor:
    """Return contiguous features, zero-padded to a multiple of `multiple` columns."""
    return F.pad(features, (0, -features.shape[1] % multiple)).contiguous()


def _samples(terms: LossTerms, limits: Tensor | None, half: bool, multiple: int) -> list[Tensor | None]:
    """Return image labels, text labels, factors, groups and limits (in base 2) of rows or columns, for the kernels."""
    factors = terms.factors
    if factors is not None:
        factors = _padded(factors.to(torch.float16 if half else torch.float32), multiple)
    limits = None if limits is None else (limits.float() * LOG2_E).contiguous()
    numbers = (terms.image_labels, terms.text_labels, terms.groups)
    image, text, groups = (None if part is None else part.contiguous() for part in numbers)
    return [image, text, factors, groups, limits]
