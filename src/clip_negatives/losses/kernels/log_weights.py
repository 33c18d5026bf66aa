"""Look-up of the log-weights b of incorrect pairs: of a block, of all pairs, or of explicit pairs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from clip_negatives.losses.kernels.pairs import Pairs
from clip_negatives.losses.sparse_tables import look_up, with_dense_tables
from clip_negatives.terms import MODALITIES, LossTerms


def block(rows: LossTerms, columns: LossTerms, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return b of the images of `rows` with the texts of `columns`, shape (R, C), -inf for pairs of one group."""
    device = next((value.device for value in rows.tensors().values()), None)
    b = torch.zeros((rows.n_samples or 0, columns.n_samples or 0), dtype=dtype, device=device)
    if rows.sparse:
        rows, columns = _with_common_tables(rows, columns)
    if rows.weighted:
        b = all_pairs(Pairs.of(rows, columns), dtype)
    if rows.groups is not None and columns.groups is not None:
        b = b.masked_fill(rows.groups[:, None] == columns.groups.to(b.device), -torch.inf)
    return b


def _with_common_tables(rows: LossTerms, columns: LossTerms) -> tuple[LossTerms, LossTerms]:
    """Return both terms with common dense tables for the clusters of rows and columns."""
    n = rows.n_samples or 0
    labels = [f"{name}_labels" for name in MODALITIES if getattr(rows, f"{name}_labels") is not None]
    joined = {name: torch.cat([getattr(rows, name), getattr(columns, name)]) for name in labels}
    unread = dict.fromkeys(name for name in rows.per_sample() if name not in labels)
    dense, _ = with_dense_tables(rows.replace(**unread, **joined), None)
    shared = {name: getattr(dense, name) for name, field in dense.tensor_fields().items() if field.kind == "cluster"}
    first, last = ({name: getattr(dense, name)[part] for name in labels} for part in (slice(0, n), slice(n, None)))
    return rows.replace(**shared, **first), columns.replace(**shared, **last)


def all_pairs(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """Return b of all pairs, shape (B, G)."""
    parts = [
        table.index_select(0, row_labels).to(dtype).index_select(1, column_labels)
        for row_labels, column_labels, table in _tables(pairs)
    ]
    if pairs.rows.factors is not None and pairs.columns.factors is not None:
        parts.append(-(pairs.rows.factors.to(dtype) @ pairs.columns.factors.to(dtype).T))
    return functools.reduce(torch.add, parts)


def write_block(pairs: Pairs, rows: slice, out: Tensor, scratch: Tensor) -> Tensor:
    """Write b of a block of rows with all columns into `out`, shape (R, C), and return it; `scratch` is overwritten.

    Both are column-major: the look-up of rows then expands the table to K x R entries, not K x C, and the look-up of columns
    copies contiguous memory on all threads.
    """
    empty = True
    for row_labels, column_labels, table in _tables(pairs):
        row_entries = table.to(out.dtype).index_select(0, row_labels[rows]).T.contiguous()
        torch.index_select(row_entries, 0, column_labels, out=(out if empty else scratch).T)
        if not empty:
            out += scratch
        empty = False
    if pairs.rows.factors is not None and pairs.columns.factors is not None:
        left, right = pairs.columns.factors.to(out.dtype), pairs.rows.factors[rows].to(out.dtype)
        torch.addmm(out.T, left, right.T, beta=0 if empty else 1, alpha=-1, out=out.T)
    return out


def _tables(pairs: Pairs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return each table with the labels of the rows and of the columns."""
    rows, columns = pairs.rows, pairs.columns
    fields = [(f"{name}_labels", f"{name}_table") for name in MODALITIES]
    tables = [(getattr(rows, labels), getattr(columns, labels), getattr(rows, table)) for labels, table in fields]
    return [parts for parts in tables if all(part is not None for part in parts)]


def of_pairs(terms: LossTerms, image_index: Tensor, text_index: Tensor) -> Tensor:
    """Return b of explicit pairs, image ``image_index[m]`` with text ``text_index[m]``, float32, shape (M,)."""
    total = torch.zeros(image_index.shape, device=image_index.device)
    for name in MODALITIES:
        labels, table, neighbours = (getattr(terms, f"{name}_{part}") for part in ("labels", "table", "neighbours"))
        if table is not None and labels is not None:
            total = total + look_up(table, neighbours, labels[image_index], labels[text_index])
    if terms.factors is not None:
        total = total - (terms.factors[image_index] * terms.factors[text_index]).sum(dim=1)
    return total
