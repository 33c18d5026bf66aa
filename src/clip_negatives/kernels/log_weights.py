"""The log-weights b of incorrect pairs, looked up; never more than a block of them is held."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels.pairs import Pairs, Side
from clip_negatives.listed import look_up, with_dense_tables


def block(rows: LossTerms, columns: LossTerms, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return b for the images of some samples with the texts of others, shape (R, C), -inf within a group."""
    sides = Side.of(rows), Side.of(columns)
    shape = rows.n_samples or 0, columns.n_samples or 0
    b = torch.zeros(shape, dtype=dtype)
    if rows.listed:
        rows, columns = _dense(rows, columns)
        sides = Side.of(rows), Side.of(columns)
    if rows.weighted:
        b = everything(Pairs(*sides, rows.image_table, rows.text_table), dtype)
    if rows.groups is not None and columns.groups is not None:
        b = b.masked_fill(rows.groups[:, None] == columns.groups.to(b.device), -torch.inf)
    return b


def _dense(rows: LossTerms, columns: LossTerms) -> tuple[LossTerms, LossTerms]:
    """Return the terms with dense tables of the clusters of rows and columns."""
    n = rows.n_samples or 0
    labels: dict[str, Any] = {
        name: torch.cat([mine, theirs])
        for name in ("image_labels", "text_labels")
        if (mine := getattr(rows, name)) is not None and (theirs := getattr(columns, name)) is not None
    }
    both, _ = with_dense_tables(dataclasses.replace(rows, **labels, factors=None, groups=None, positive_rate=None), None)
    tables: dict[str, Any] = {
        name: getattr(both, name) for name in ("image_table", "text_table", "image_listed", "text_listed")
    }
    mine, theirs = ({name: getattr(both, name)[part] for name in labels} for part in (slice(0, n), slice(n, None)))
    return dataclasses.replace(rows, **tables, **mine), dataclasses.replace(columns, **tables, **theirs)


def everything(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """Return b of all pairs, shape (B, G)."""
    total: Tensor | None = None
    for mine, theirs, table in _tables(pairs, pairs.rows):
        found = table.to(dtype)[mine][:, theirs]
        total = found if total is None else total + found
    if pairs.rows.factors is not None and pairs.columns.factors is not None:
        product = pairs.rows.factors.to(dtype) @ pairs.columns.factors.to(dtype).T
        total = -product if total is None else total - product
    if total is None:
        raise ValueError("Expected pairs with a table or factors, got neither.")
    return total


def write_block(pairs: Pairs, rows: slice, out: Tensor, spare: Tensor) -> Tensor:
    """Return `out` with b of some rows with all columns in it, shape (R, C); `spare` is overwritten.

    Both lie column by column: what is expanded first then has K x R entries, not K x C, and the second look-up copies whole
    rows of memory, on all threads.
    """
    some, columns = pairs.rows.part(rows), pairs.columns
    empty = True
    for mine, theirs, table in _tables(pairs, some):
        half = table.to(out.dtype).index_select(0, mine).T.contiguous()
        torch.index_select(half, 0, theirs, out=(out if empty else spare).T)
        if not empty:
            out += spare
        empty = False
    if some.factors is not None and columns.factors is not None:
        left, right = columns.factors.to(out.dtype), some.factors.to(out.dtype)
        torch.addmm(out.T, left, right.T, beta=0 if empty else 1, alpha=-1, out=out.T)
    return out


def _tables(pairs: Pairs, rows: Side) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the tables there are, each with its labels of the rows and of the columns."""
    columns = pairs.columns
    found = [
        (rows.image_labels, columns.image_labels, pairs.image_table),
        (rows.text_labels, columns.text_labels, pairs.text_table),
    ]
    return [(a, b, table) for a, b, table in found if a is not None and b is not None and table is not None]


def of_pairs(terms: LossTerms, image_index: Tensor, text_index: Tensor) -> Tensor:
    """Return b of explicit pairs, image ``image_index[m]`` with text ``text_index[m]``, float32, shape (M,)."""
    total = torch.zeros(image_index.shape, device=image_index.device)
    for labels, table, listed in (
        (terms.image_labels, terms.image_table, terms.image_listed),
        (terms.text_labels, terms.text_table, terms.text_listed),
    ):
        if table is not None and labels is not None:
            total = total + look_up(table, listed, labels[image_index], labels[text_index])
    if terms.factors is not None:
        total = total - (terms.factors[image_index] * terms.factors[text_index]).sum(dim=1)
    return total
