"""Triton kernel of wide tables: log-weights with one column for each sample, relative to the largest entry of their table."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


# fmt: off
@triton.jit
def wide_table_kernel(table, labels, top, out, n, width, down, across, BLOCK: tl.constexpr):
    """Write ``out[k, j] = (table[k, labels[j]] - top) * log2(e)``; program (k, block of samples)."""
    row, samples = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = samples < n
    entry = tl.load(table + row * down + tl.load(labels + samples, mask=valid, other=0) * across, mask=valid, other=0.0)
    entry = (entry - finite_top(top)) * LOG2_E
    tl.store(out + row * width + samples, entry.to(out.dtype.element_ty), mask=valid)


@triton.jit
def finite_top(top):
    """Return the largest entry of a table, or 0 without a table or for a table of -inf."""
    value = 0.0
    if top is not None:
        value = tl.load(top)
        value = tl.where(value == float("-inf"), 0.0, value)
    return value
