"""Vectors whose inner products are weighted sums of frozen cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 65536
"""Rows that are read at a time, and rows that the directions are found from."""


def low_rank_factors(parts: Sequence[tuple[float, Tensor]], rank: int | None) -> Tensor:
    """Return vectors u with ``<u_i, u_j> = sum over parts of beta <f_i, f_j>``, or close to it.

    With a rank below their number of columns the features are projected on their first principal directions, not centred:
    of all projections of that rank the one that keeps the most of the inner products (Eckart and Young, 1936).

    Args:
        parts: beta over 0 and features, each shape (N, D), possibly memory-mapped: they are read by blocks.
        rank: columns to keep at most; None keeps all.

    Returns:
        float32, shape (N, min(rank, sum of D)).
    """
    n, columns = len(parts[0][1]), sum(features.shape[1] for _, features in parts)
    onto = None
    if rank is not None and rank < columns:
        chosen = torch.arange(n) if n <= ROWS else torch.linspace(0, n - 1, ROWS, dtype=torch.float64).long()
        rows = _rows(parts, chosen).double()
        # Ascending eigenvalues. No randomness: the same features give the same factors.
        onto = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -rank:].float()
    found = torch.empty(n, columns if onto is None else onto.shape[1])
    for start in range(0, n, ROWS):
        index = torch.arange(start, min(start + ROWS, n))
        block = _rows(parts, index)
        found[start : start + ROWS] = block if onto is None else block @ onto
    return found


def _rows(parts: Sequence[tuple[float, Tensor]], index: Tensor) -> Tensor:
    return torch.cat([math.sqrt(beta) * features[index].float() for beta, features in parts], dim=1)
