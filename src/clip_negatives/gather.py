"""Gather what the processes that train together hold, in the order of their ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.nn
from torch import Tensor
from torch import distributed as dist


def gather(rows: Tensor, world_size: int) -> list[Tensor]:
    """Return the rows of every process, without gradients; every process gives as many."""
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size)]
    dist.all_gather(parts, rows.contiguous())
    return parts


def gather_features(features: Tensor, rank: int, world_size: int, *, local_loss: bool, with_grad: bool) -> Tensor:
    """Return the features of all processes, shape (G, D); gradients flow as `open_clip.loss.gather_features` lets them.

    Args:
        features: this process's, shape (B, D).
        rank: this process.
        world_size: number of processes.
        local_loss: whether the caller computes only the loss of its own samples.
        with_grad: send gradients back to the processes whose features they are. Without it they reach this process's
            features in the result, and not even those with `local_loss`, which has them beside the result.
    """
    if with_grad:
        all_gather: Any = torch.distributed.nn.all_gather
        return torch.cat(all_gather(features), dim=0)
    parts = gather(features.detach(), world_size)
    if not local_loss:
        parts[rank] = features
    return torch.cat(parts, dim=0)
