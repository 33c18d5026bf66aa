"""A network that gives each sample a factor within limits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FactorNetwork(nn.Module):
    """A fixed random projection and two trained layers; the last one starts at 0, so that all factors are 1.

    The projection makes the parameters independent of the length of the features, which is unknown before the first step.

    Args:
        width: length of the projected features, and number of hidden units.
        limit: factors are within 1 / limit .. limit.
    """

    def __init__(self, width: int, limit: float) -> None:
        super().__init__()
        self.log_limit, self.projection = math.log(limit), torch.zeros(0, width)
        self.weight = nn.Parameter(_normal(width, width, seed=0) / math.sqrt(width))  # equal in all processes
        self.last, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Return the factors, float32, shape (B,), of features of unit norm, shape (B, D)."""
        if len(self.projection) != features.shape[1] or self.projection.device != features.device:
            self.projection = _normal(features.shape[1], self.projection.shape[1], seed=1).to(features.device)
        outputs = (features.float() @ self.projection @ self.weight).tanh() @ self.last + self.shift
        return (self.log_limit * outputs.float().tanh()).exp()


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
