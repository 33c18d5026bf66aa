"""Sparse tables for very many clusters: an entry for each neighbour of a cluster, and one for all other clusters.

A sparse table of K clusters with m neighbours each has shape (K, m + 1). Its first m columns belong to the clusters in
``neighbours``, shape (K, m); its last column is for all other clusters. If only one of two clusters lists the
other, the pair gets the entry from that list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.terms import MODALITIES, LossTerms


def look_up(table: Tensor, neighbours: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the entries of pairs of clusters.

    Args:
        table: sparse table, shape (K, m + 1), or dense table, shape (K, K).
        neighbours: int32 or int64, shape (K, m); None for a dense table.
        rows: first cluster of each pair, int64.
        columns: second cluster, broadcasts with `rows`.

    Examples:
        >>> table = torch.tensor([[1.0, 0.5, 0.1], [1.0, 0.6, 0.2], [1.0, 0.7, 0.3]])
        >>> neighbours = torch.tensor([[0, 1], [1, 2], [2, 1]])
        >>> look_up(table, neighbours, torch.tensor([0, 1, 0]), torch.tensor([1, 0, 2]))
        tensor([0.5000, 0.5000, 0.1000])
    """
    if neighbours is None:
        return table[rows, columns]
    rows, columns = torch.broadcast_tensors(rows, columns)
    forward, entry = _entry(table, neighbours, rows, columns)
    backward, reverse_entry = _entry(table, neighbours, columns, rows)
    return torch.where(forward, entry, torch.where(backward, reverse_entry, table[rows, -1]))


def with_dense_tables(terms: LossTerms, all_terms: LossTerms | None) -> tuple[LossTerms, LossTerms | None]:
    """Return the terms of a batch with dense tables between the samples of the step, and labels that index these tables.

    A table takes ``4 G^2`` bytes for the G samples of a step, independent of the number of clusters. Nothing waits for a GPU.
    `all_terms` are the terms of the G samples of all processes, including the B samples of this process; None if B = G.
    """
    for name in MODALITIES:
        neighbours, table = getattr(terms, f"{name}_neighbours"), getattr(terms, f"{name}_table")
        if neighbours is None or table is None:
            continue
        labels = getattr(terms if all_terms is None else all_terms, f"{name}_labels")
        slots = torch.full((len(table) + 1,), -1, dtype=torch.int64, device=labels.device)  # the last slot stays -1
        slots[labels] = torch.arange(len(labels), device=labels.device)
        lists = neighbours[labels].long()
        dense = _dense(table[labels], slots[lists])
        # A sample without a label has no neighbours, not even itself: its pairs keep log-weight 0 in both directions.
        dense = dense.masked_fill((lists < 0).all(dim=1)[None, :], 0.0)
        tables = {f"{name}_table": dense, f"{name}_neighbours": None}
        own_labels = getattr(terms, f"{name}_labels")
        terms = terms.replace(**tables, **{f"{name}_labels": slots[own_labels]})
        all_terms = None if all_terms is None else all_terms.replace(**tables, **{f"{name}_labels": slots[labels]})
    return terms, all_terms


def _dense(rows: Tensor, places: Tensor) -> Tensor:
    """Return the table (G, G) from the neighbours' positions in the step, `places` (G, m), -1 if not in the step."""
    n = len(rows)
    # NaN marks clusters that are not neighbours. Neighbours outside the step go to an extra column, which is dropped.
    table = torch.full((n, n + 1), torch.nan, dtype=rows.dtype, device=rows.device)
    table = table.scatter_(1, places.remainder(n + 1), rows[:, :-1])[:, :n]
    table = torch.where(table.isnan(), table.T, table)
    return torch.where(table.isnan(), rows[:, -1:], table)


def _entry(table: Tensor, neighbours: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether `columns` are neighbours of `rows`, and the entry if so."""
    match = neighbours[rows] == columns[..., None]
    place = match.to(torch.uint8).argmax(dim=-1)
    return match.any(dim=-1), table[rows, place]
