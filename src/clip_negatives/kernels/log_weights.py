"""The log-weights b of a block of incorrect pairs, looked up; never more than the block is held."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms


def block(
    rows: LossTerms,
    columns: LossTerms,
    dtype: torch.dtype = torch.float32,
    *,
    images_are_rows: bool = True,
    buffers: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return b for the samples of `rows` (R) with those of `columns` (C), shape (R, C).

    Equals ``image_table[a_i, a_j] + text_table[c_i, c_j] - <factors_i, factors_j>`` with image i and text j; absent
    parts count 0. Where the images are the columns, tables, which need not be symmetric, are read the other way round.

    Args:
        rows: log-weights of the samples of the rows.
        columns: the same of the columns.
        dtype: of the result.
        images_are_rows: whether the rows are the images and the columns the texts.
        buffers: two contiguous tensors of the shape and dtype of the result; both are overwritten, the first is returned.

    Raises:
        InputError: the terms are neutral.
    """
    held = [part for part in (rows.image_labels, rows.text_labels, rows.factors) if part is not None]
    if rows.neutral or not held:
        raise InputError("Expected log-weights with a table or factors, got neutral ones. Leave them out.")
    shape = len(held[0]), columns.n_samples or 0
    out, spare = buffers or (torch.empty(shape, dtype=dtype, device=held[0].device) for _ in range(2))
    empty = True
    for labels, table in (("image_labels", "image_table"), ("text_labels", "text_table")):
        values: Tensor | None = getattr(rows, table)
        if values is not None:
            values = (values if images_are_rows else values.T).to(dtype)
            # Columns first: the second look-up then copies whole rows, on all threads.
            half = values.index_select(1, getattr(columns, labels))
            found = torch.index_select(half, 0, getattr(rows, labels), out=out if empty else spare)
            out, empty = found if empty else out.add_(found), False
    if rows.factors is not None and columns.factors is not None:
        left, right = rows.factors.to(dtype), columns.factors.to(dtype).T
        torch.addmm(out, left, right, beta=0 if empty else 1, alpha=-1, out=out)
    return out


def pairs(terms: LossTerms, image_index: Tensor, text_index: Tensor) -> Tensor:
    """Return b of explicit pairs, image ``image_index[m]`` with text ``text_index[m]``, float32, shape (M,)."""
    total = torch.zeros(image_index.shape, device=image_index.device)
    for labels, table in (("image_labels", "image_table"), ("text_labels", "text_table")):
        values = getattr(terms, table)
        if values is not None:
            of = getattr(terms, labels)
            total = total + values[of[image_index], of[text_index]]
    if terms.factors is not None:
        total = total - (terms.factors[image_index] * terms.factors[text_index]).sum(dim=1)
    return total


def mean_one_shift(log_sum: Tensor, kept: Tensor) -> Tensor:
    """Return what to subtract from b so that the kept weights have mean 1; 0 where none is kept.

    Args:
        log_sum: log of the sum of ``exp(b)`` over the kept incorrect pairs of each row or column.
        kept: their number.
    """
    # Where nothing is kept both terms are -inf and their difference is not a number.
    return (log_sum - kept.to(log_sum.dtype).log()).masked_fill(kept == 0, 0.0)
