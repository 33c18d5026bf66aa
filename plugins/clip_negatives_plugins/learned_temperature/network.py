"""A network that gives each sample a factor within limits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FactorNetwork(nn.Module):
    """Two linear layers; the second one starts at 0, so that all factors are 1.

    Args:
        length: length of the features, D.
        width: number of hidden units.
        limit: factors are within 1 / limit .. limit.
    """

    def __init__(self, length: int, width: int, limit: float) -> None:
        super().__init__()
        self.log_limit, generator = math.log(limit), torch.Generator().manual_seed(0)  # equal in all processes
        self.weight = nn.Parameter(torch.randn(length, width, generator=generator))
        self.last, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Return the factors, float32, shape (B,), of features of unit norm, shape (B, D)."""
        outputs = (features @ self.weight).tanh() @ self.last + self.shift
        return (self.log_limit * outputs.float().tanh()).exp()
