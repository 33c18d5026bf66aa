"""Tables between very many clusters: an entry for those that each cluster lists, and one for all others.

A table of K clusters that list m each has shape (K, m + 1). Its first m columns are of the clusters in ``listed``, shape
(K, m), its last is of all that are not listed. A pair of clusters of which only one lists the other takes that entry.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.terms import LossTerms


def look_up(table: Tensor, listed: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the entries of pairs of clusters; a table without lists is one of all, shape (K, K).

    Args:
        table: shape (K, m + 1), or (K, K).
        listed: int32 or int64, shape (K, m); None for a table of all.
        rows: first cluster of each pair, int64.
        columns: second cluster, broadcasts with `rows`.

    Examples:
        >>> table = torch.tensor([[1.0, 0.5, 0.1], [1.0, 0.6, 0.2], [1.0, 0.7, 0.3]])
        >>> listed = torch.tensor([[0, 1], [1, 2], [2, 1]])
        >>> look_up(table, listed, torch.tensor([0, 1, 0]), torch.tensor([1, 0, 2]))
        tensor([0.5000, 0.5000, 0.1000])
    """
    if listed is None:
        return table[rows, columns]
    rows, columns = torch.broadcast_tensors(rows, columns)
    found, entry = _entry(table, listed, rows, columns)
    back, other = _entry(table, listed, columns, rows)
    return torch.where(found, entry, torch.where(back, other, table[rows, -1]))


def with_dense_tables(terms: LossTerms, all_terms: LossTerms | None) -> tuple[LossTerms, LossTerms | None]:
    """Return the terms of a batch with tables of its own clusters, dense, and labels of theirs.

    The tables are of the G samples of a step, so each takes ``4 G^2`` bytes, however many clusters there are. Nothing of it
    waits for a device.

    Args:
        terms: of the B samples of this process.
        all_terms: of the G of all, the B among them; None where B is all.

    Raises:
        InputError: a table does not fit its lists, or there are no labels.
    """
    for name in ("image", "text"):
        listed, table = getattr(terms, f"{name}_listed"), getattr(terms, f"{name}_table")
        if listed is None or table is None:
            continue
        labels = getattr(terms if all_terms is None else all_terms, f"{name}_labels")
        if labels is None or table.shape != (len(listed), listed.shape[1] + 1):
            wanted, have = (len(listed), listed.shape[1] + 1), "no" if labels is None else "some"
            raise InputError(
                f"Expected {name}_labels, and a table of shape {wanted} for its lists, got one of shape {tuple(table.shape)} "
                f"and {have} labels. Give LossTerms.take(index)."
            )
        slots = torch.full((len(table) + 1,), -1, dtype=torch.int64, device=labels.device)  # the last one stays -1
        slots[labels] = torch.arange(len(labels), device=labels.device)
        lists = listed[labels].long()
        dense = _dense(table[labels], slots[lists])
        # A sample without a label lists nobody, itself neither: its pairs count as they are, seen from either side.
        dense = dense.masked_fill((lists < 0).all(dim=1)[None, :], 0.0)
        change = {f"{name}_table": dense, f"{name}_listed": None}
        mine = getattr(terms, f"{name}_labels")
        terms = _replaced(terms, change | {f"{name}_labels": slots[mine]})
        all_terms = None if all_terms is None else _replaced(all_terms, change | {f"{name}_labels": slots[labels]})
    return terms, all_terms


def _replaced(terms: LossTerms, change: dict[str, Any]) -> LossTerms:
    return dataclasses.replace(terms, **change)


def _dense(rows: Tensor, places: Tensor) -> Tensor:
    """Return the table of G clusters, shape (G, G), whose lists are at `places`, shape (G, m), -1 for what is not there."""
    n = len(rows)
    # NaN is what is not listed. What is not there goes to a column of its own, which is dropped.
    table = torch.full((n, n + 1), torch.nan, dtype=rows.dtype, device=rows.device)
    table = table.scatter_(1, places.remainder(n + 1), rows[:, :-1])[:, :n]
    table = torch.where(table.isnan(), table.T, table)
    return torch.where(table.isnan(), rows[:, -1:], table)


def _entry(table: Tensor, listed: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether `rows` list `columns`, and the entry where they do."""
    match = listed[rows] == columns[..., None]
    place = match.to(torch.uint8).argmax(dim=-1)
    return match.any(dim=-1), table[rows, place]
