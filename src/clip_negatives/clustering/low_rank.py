"""Vectors whose inner products are weighted sums of frozen cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 65536
"""Rows per block, and number of rows from which the principal directions are computed."""


def low_rank_factors(parts: Sequence[tuple[float, Tensor]], rank: int | None, *, centre: bool = False) -> Tensor:
    """Return vectors u with ``<u_i, u_j> = sum over parts of beta <f_i, f_j>``, or a low-rank approximation.

    The vectors, not centred, are projected on their first `rank` principal directions. Of all projections of this rank, this
    one approximates the inner products best (Eckart and Young, 1936). The result is not random.

    Args:
        parts: pairs of beta > 0 and features, shape (N, D), possibly memory-mapped; they are read in blocks.
        rank: number of columns to keep; None keeps all.
        centre: f_i is the feature minus the mean feature of the part, scaled to unit norm; otherwise f_i is the feature.

    Returns:
        float32, shape (N, min(rank, sum of D)).

    Examples:
        >>> features = torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
        >>> low_rank_factors([(4.0, features)], None, centre=True)
        tensor([[ 2.,  0.],
                [-2.,  0.],
                [ 0.,  0.]])
    """
    n, columns = len(parts[0][1]), sum(features.shape[1] for _, features in parts)
    means = [_mean(features) if centre else None for _, features in parts]

    def vectors(index: Tensor) -> Tensor:
        blocks = ((beta, features[index].float(), mean) for (beta, features), mean in zip(parts, means, strict=True))
        return torch.cat(
            [math.sqrt(beta) * (rows if mean is None else F.normalize(rows - mean, dim=1)) for beta, rows, mean in blocks],
            dim=1,
        )

    directions = None
    if rank is not None and rank < columns:
        chosen = torch.arange(n) if n <= ROWS else torch.linspace(0, n - 1, ROWS, dtype=torch.float64).long()
        sample = vectors(chosen).double()
        directions = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -rank:].float()  # eigenvalues ascend
    factors = torch.empty(n, columns if directions is None else directions.shape[1])
    for start in range(0, n, ROWS):
        block = vectors(torch.arange(start, min(start + ROWS, n)))
        factors[start : start + ROWS] = block if directions is None else block @ directions
    return factors


def _mean(features: Tensor) -> Tensor:
    """Return the mean row, float32; it is summed in float64."""
    blocks = range(0, len(features), ROWS)
    total = sum(features[torch.arange(start, min(start + ROWS, len(features)))].double().sum(0) for start in blocks)
    return (torch.as_tensor(total) / len(features)).float()
