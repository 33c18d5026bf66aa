"""Projection of features to a fixed length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.sampling import epoch_generator


class Projection:
    """Projects features to `length` orthogonal random directions; shorter features are padded with zeros instead.

    Padding keeps cosines. The projection changes them: the standard deviation is about ``sqrt(1 / length - 1 / D)``.

    Args:
        length: length of the result.
        seed: seed of the directions.

    Examples:
        >>> Projection(3, seed=0)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000, 0.0000]])
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._directions: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Return unit-norm rows on the CPU, float32, shape (G, length); zeros for features that are not finite."""
        features = features.cpu().float()
        dim = features.shape[1]
        rows = F.pad(features, (0, self.length - dim)) if dim <= self.length else features @ self._directions_of(dim)
        return F.normalize(rows, dim=1).nan_to_num(0)

    def _directions_of(self, dim: int) -> Tensor:
        if self._directions is None:
            q, r = torch.linalg.qr(torch.randn(dim, self.length, generator=epoch_generator(self.seed, 0)))
            self._directions = q * r.diagonal().sign()  # signs differ between processors
        return self._directions
