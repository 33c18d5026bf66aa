"""Rows and features of all processes of a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.distributed.gather import gather, gather_features


@dataclass(frozen=True)
class Gathering:
    """How a loss collects the samples of all processes; see `open_clip.ClipLoss`.

    Attributes:
        rank: rank of this process.
        world_size: number of processes.
        local_loss: whether the anchors are those of this process.
        with_grad: whether gradients flow through the gathering of features.
    """

    rank: int = 0
    world_size: int = 1
    local_loss: bool = False
    with_grad: bool = False

    def rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, without gradients."""
        return rows if self.world_size == 1 else torch.cat(gather(rows, self.world_size))

    def features(self, features: Tensor) -> Tensor:
        """Return the features of all processes, with gradients as the settings say."""
        if self.world_size == 1:
            return features
        return gather_features(features, self.rank, self.world_size, local_loss=self.local_loss, with_grad=self.with_grad)

    def extra_features(self, features: Tensor) -> Tensor:
        """Return the added features of all processes; those of this process keep their gradients in any case."""
        if self.world_size == 1:
            return features
        return gather_features(features, self.rank, self.world_size, local_loss=False, with_grad=self.with_grad)
