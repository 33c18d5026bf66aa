"""Vectors whose inner products are weighted sums of frozen cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROWS = 65536
"""Rows per block, and number of rows from which the principal directions are computed."""


def low_rank_factors(parts: Sequence[tuple[float, Tensor]], rank: int | None) -> Tensor:
    """Return vectors u with ``<u_i, u_j> = sum over parts of beta <f_i, f_j>``, or a low-rank approximation.

    The features, not centred, are projected on their first `rank` principal directions. Of all projections of this rank, this
    one approximates the inner products best (Eckart and Young, 1936). The result is not random.

    Args:
        parts: pairs of beta > 0 and features, shape (N, D), possibly memory-mapped; they are read in blocks.
        rank: number of columns to keep; None keeps all.

    Returns:
        float32, shape (N, min(rank, sum of D)).
    """
    n, columns = len(parts[0][1]), sum(features.shape[1] for _, features in parts)
    directions = None
    if rank is not None and rank < columns:
        chosen = torch.arange(n) if n <= ROWS else torch.linspace(0, n - 1, ROWS, dtype=torch.float64).long()
        rows = _rows(parts, chosen).double()
        directions = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -rank:].float()  # eigenvalues ascend
    factors = torch.empty(n, columns if directions is None else directions.shape[1])
    for start in range(0, n, ROWS):
        block = _rows(parts, torch.arange(start, min(start + ROWS, n)))
        factors[start : start + ROWS] = block if directions is None else block @ directions
    return factors


def _rows(parts: Sequence[tuple[float, Tensor]], index: Tensor) -> Tensor:
    return torch.cat([math.sqrt(beta) * features[index].float() for beta, features in parts], dim=1)
