"""Arguments of the fused kernels: features, tables, per-sample fields, and tile sizes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import UnsupportedError
from clip_negatives.losses.backends import interpreted, one_tf32_product
from clip_negatives.losses.kernels import wide_tables
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.terms import LossTerms

WIDE_TABLE_BYTES = 64 * 2**20  # largest table with one column per sample, from which a tile reads contiguous memory
WIDE_TABLE_SHARE = 1 / 32  # the same limit as a share of the matrix of all logits; the larger limit applies
WIDE_TABLE_BLOCK = 1024  # samples of one program that writes a wide table
LOG2_E = math.log2(math.e)


class Table(NamedTuple):
    """A table as the kernels read it."""

    values: Tensor | None = None  # if wide: in base 2, one column per sample, whole tiles; otherwise the table itself
    wide: bool = False
    top: Tensor | None = None  # constant subtracted from every entry, a scalar; -inf counts as 0


class Problem:
    """Arguments that all kernels over pairs share; features are padded with zeros to whole steps of the product."""

    def __init__(self, inputs: Inputs, pairs: Pairs) -> None:
        x, y, self.scale, self.bias = inputs
        dtype = torch.promote_types(x.dtype, y.dtype)
        half = dtype != torch.float32
        self.pairs = pairs
        rows, columns = pairs.rows, pairs.columns
        tables = rows.image_table, rows.text_table
        widths = [_is_wide(table, len(x), len(y), half) for table in tables]
        direct = any(table is not None and not wide for table, wide in zip(tables, widths, strict=True))
        self.tile = tile_of(pairs, half=half, direct=direct, capability=capability_of(x.device))
        labels = columns.image_labels, columns.text_labels
        width = -(-len(y) // self.tile["BN"]) * self.tile["BN"]
        self.image, self.text = (
            _wide_table(table, label, width, half) if wide and table is not None and label is not None else Table(table)
            for table, label, wide in zip(tables, labels, widths, strict=True)
        )
        self.x, self.y = (_padded(side.to(dtype), self.tile["BK"]) for side in (x, y))
        self.rows = _samples(rows, pairs.row_limits, half, self.tile["BR"])
        self.columns = _samples(columns, pairs.column_limits, half, self.tile["BR"])

    @property
    def tops(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the constants that were subtracted from the wide tables, and that are added back to the sums."""
        return self.image.top, self.text.top

    def n_tiles(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the number of tiles of a block, down and across."""
        return -(-rows // self.tile["BM"]), -(-columns // self.tile["BN"])

    def blocks(self, size: int | None, pairs: float, columns: int) -> list[tuple[slice, slice]]:
        """Return the rows and columns of each block of pairs, row by row of blocks.

        A block has at most `columns` columns, rounded up to whole tiles. It has `size` rows; if `size` is None, as many whole
        tiles as fit in `pairs`.
        """
        columns = min(len(self.y), -(-columns // self.tile["BN"]) * self.tile["BN"])
        if size is None:
            size = max(1, int(pairs / columns) // self.tile["BM"]) * self.tile["BM"]
        size = min(size, max(1, (2**31 - 1) // columns))  # offsets within a block are int32
        return [(rows, across) for rows in _slices(len(self.x), size) for across in _slices(len(self.y), columns)]

    def arguments(self, rows: slice, columns: slice) -> list[Any]:
        """Return the tensor arguments of a block."""
        tables = [table.values[:, columns.start :] if table.wide else table.values for table in (self.image, self.text)]  # type: ignore[index]
        sides = [
            [None if field is None else field[part] for field in fields]
            for fields, part in ((self.rows, rows), (self.columns, columns))
        ]
        return [self.x[rows], self.y[columns], self.scale, self.bias, *tables, *sides[0], *sides[1]]

    def sizes(self, rows: slice, columns: slice) -> list[Any]:
        """Return the sizes and strides of a block."""
        lengths = [0 if factors is None else factors.shape[1] for factors in self.rows[2:4]]
        tables = (self.image.values, self.text.values)
        strides = [stride for table in tables for stride in ((0, 0) if table is None else table.stride())]
        offset = self.pairs.offset + rows.start - columns.start
        shape = [rows.stop - rows.start, columns.stop - columns.start, self.x.shape[1], *lengths]
        return [*shape, offset, self.pairs.hardness or None, *strides]

    def flags(self) -> dict[str, Any]:
        """Return the compile-time constants."""
        tables = {"WIDE_IMAGE": self.image.wide, "WIDE_TEXT": self.text.wide}
        precision = "tf32" if one_tf32_product() else "tf32x3"
        options = {"IMPORTANCE": self.pairs.importance, "COLUMNS": self.pairs.columns_too, "PRECISION": precision}
        return options | tables | self.tile


def capability_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU; for other devices, where kernels are only compiled, 9.0."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def tile_of(pairs: Pairs, *, half: bool, direct: bool, capability: tuple[int, int]) -> dict[str, int]:
    """Return the tile size and compiler options; `direct` is whether a table is not wide.

    Pairs that need more registers get smaller tiles; tests/losses/kernels/test_machine_code.py checks register spills. Up to
    128 registers, two blocks of threads share a multiprocessor.
    """
    if interpreted():
        return {"BM": 32, "BN": 32, "BK": 32, "BR": 16, "GROUP": 2}
    extra = direct + (pairs.rows.factors is not None) + (pairs.row_limits is not None) + (pairs.hardness > 0)
    extra += 2 * (pairs.rows.groups is not None) + pairs.targeted + pairs.mixed_signs
    # float32 takes three products instead of one
    sizes = [(128, 128), (128, 64), (64, 64)] if half else [(128, 64), (64, 64), (64, 32)]
    height, width = sizes[min(extra, 2)]
    tile = {"BM": height, "BN": width, "BK": 64 if half else 32, "BR": 32, "GROUP": 8, "num_warps": 8, "num_stages": 3}
    # Without this limit, triton 3.6 uses 130 to 189 registers in some kernels. With it, kernels with hardness or more than two
    # options spill. Before 9.0 there is no limit: the kernels use up to 217 registers.
    limited = half and capability >= (9, 0) and not pairs.hardness and extra <= 2
    return tile | ({"maxnreg": 128} if limited else {})


def _is_wide(table: Tensor | None, n_rows: int, n_columns: int, half: bool) -> bool:
    if table is None:
        return False
    if table.numel() >= 2**31:
        limit = "The triton backend takes tables of fewer than 2^31 entries"
        raise UnsupportedError(f"{limit}, got {tuple(table.shape)}. Use backend 'chunked'.")
    size = n_columns * (2 if half else 4)
    return len(table) * size <= max(WIDE_TABLE_BYTES, WIDE_TABLE_SHARE * n_rows * size)


def _wide_table(table: Tensor, labels: Tensor, width: int, half: bool) -> Table:
    """Return a table with a column for each sample, and further columns that are never used, up to `width`."""
    # float16 is most exact around 0: shift the largest weights, which matter most, to 0
    top = table.amax() if half else None
    values = table.new_empty(len(table), width, dtype=torch.float16 if half else torch.float32)
    n, labels = len(labels), labels.contiguous()
    grid = (len(table), -(-n // WIDE_TABLE_BLOCK))
    wide_tables.wide_table_kernel[grid](table, labels, top, values, n, width, *table.stride(), BLOCK=WIDE_TABLE_BLOCK)
    return Table(values, True, top)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _padded(features: Tensor, multiple: int) -> Tensor:
    """Return contiguous features, zero-padded to a multiple of `multiple` columns."""
    missing = -features.shape[1] % multiple
    return F.pad(features, (0, missing)) if missing else features.contiguous()


def _samples(terms: LossTerms, limits: Tensor | None, half: bool, multiple: int) -> list[Tensor | None]:
    """Return the fields of rows or columns for the kernels.

    These are image labels, text labels, factors, factors of the targets, groups and limits (in base 2).
    """
    dtype = torch.float16 if half else torch.float32
    factors = [None if part is None else _padded(part.to(dtype), multiple) for part in (terms.factors, terms.target_factors)]
    limits = None if limits is None else (limits.float() * LOG2_E).contiguous()
    numbers = (terms.image_labels, terms.text_labels, terms.groups)
    image, text, groups = (None if part is None else part.contiguous() for part in numbers)
    return [image, text, *factors, groups, limits]
