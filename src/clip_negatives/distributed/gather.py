"""Gather tensors from the processes of a training run, in the order of their ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed.nn
from torch import Tensor, nn
from torch import distributed as dist


def gather(rows: Tensor, world_size: int) -> list[Tensor]:
    """Return the rows of every process, without gradients; the shape is the same on all processes."""
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size)]
    dist.all_gather(parts, rows.contiguous())
    return parts


def gather_features(features: Tensor, rank: int, world_size: int, *, local_loss: bool, with_grad: bool) -> Tensor:
    """Return the features (B, D) of all processes, (G, D), with the same gradients as `open_clip.loss.gather_features`.

    With `with_grad`, gradients flow to the features of all processes, otherwise to the features of this process only. With
    `local_loss` and without `with_grad`, no gradients flow: the caller uses its own features instead.
    """
    if with_grad:
        return torch.cat(torch.distributed.nn.all_gather(features), dim=0)
    parts = gather(features.detach(), world_size)
    if not local_loss:
        parts[rank] = features
    return torch.cat(parts, dim=0)


def gather_rows(rows: Tensor, n_samples: int) -> Tensor:
    """Return the rows of all samples, (n_samples, D), without gradients. Rank r has the rows r, r + world_size, ..."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    world_size = dist.get_world_size()
    padded = rows.new_zeros(-(-n_samples // world_size), rows.shape[1])
    padded[: len(rows)] = rows
    return torch.stack(gather(padded, world_size), dim=1).flatten(0, 1)[:n_samples]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average each gradient of these parameters over all processes when it is computed, as `DistributedDataParallel` does.

    Does nothing for a parameter that it was called with before. A frozen parameter can be trained later.
    """
    for parameter in parameters:
        if not any(hook is _averaged for hook in (parameter._backward_hooks or {}).values()):
            trained = parameter.requires_grad
            parameter.requires_grad_(True).register_hook(_averaged)  # torch refuses a hook on a frozen parameter
            parameter.requires_grad_(trained)


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy the values of process 0 to all processes, as `DistributedDataParallel` does with parameters and buffers.

    Args:
        tensors: tensors of the same shapes and dtypes on all processes, on the same device.
    """
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return
    parts = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in filled]  # bytes: gloo does not know all dtypes
    values = torch.cat(parts)
    dist.broadcast(values, 0)
    for tensor, part in zip(filled, values.split([len(part) for part in parts]), strict=True):
        tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def _averaged(gradient: Tensor) -> Tensor:
    gradient = gradient.contiguous()
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()
