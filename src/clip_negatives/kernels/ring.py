"""Sums over the pairs of all processes, with the texts of the others passing by: nothing of the size of all samples is held.

Every process keeps its images and hands texts on to its neighbour, together with what belongs to them: labels, and the sums
of their columns so far. After as many steps as there are processes everything is back home. The backward pass goes round
once more, with the gradients of the texts. Its feature gradients are those of the sum of the losses of all processes, as those
of open_clip's ``--local-loss --gather-with-grad`` are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from clip_negatives.kernels import op
from clip_negatives.kernels.pairs import Pairs, PairSums, Side, add_sums, empty_sums, sum_dtype


def pair_sums(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, *, backend: str, chunk_size: int | None = None
) -> PairSums:
    """Return the sums of this process's rows x and columns y, shape (B, D), over the samples of all processes.

    Every process calls it at the same time with as many samples. `pairs` are those of its own samples. A compiled model breaks
    its graph here.
    """
    x, y = (op.autocast(side, backend) for side in (x, y))
    rows, columns = _Ring.apply(x, y, scale, bias, pairs, backend, chunk_size)
    return PairSums(rows, columns)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, backend: str, chunk_size: int | None
    ) -> tuple[Tensor, Tensor]:
        kernels = op.backend_named(backend)
        like = x.new_empty(0, dtype=sum_dtype(x, y))
        rows, columns = empty_sums(len(x), like), empty_sums(len(y), like)
        passing = _Passing(y, pairs.columns)
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(dist.get_world_size()):
                passing.send_ahead()
                some = passing.pairs(pairs)
                found = kernels.forward(x, passing.features, scale, bias, some, chunk_size=chunk_size)
                add_sums(rows, found.rows)
                add_sums(columns, found.columns)
                (columns,) = _hand_on(columns)
                passing.receive()
        ctx.save_for_backward(x, y, scale, bias, rows, columns)
        ctx.how = pairs, backend, chunk_size
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, rows, columns = ctx.saved_tensors
        row_grads, column_grads = grads
        pairs, backend, chunk_size = ctx.how
        wants_x, wants_y, wants_scale, wants_bias = ctx.needs_input_grad[:4]
        kernels = op.backend_named(backend)
        x_grad, y_grad = (torch.zeros(side.shape, dtype=rows.dtype, device=side.device) for side in (x, y))
        passing = _Passing(y, pairs.columns, columns, column_grads)
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(dist.get_world_size()):
                passing.send_ahead()
                sums, gradients = (PairSums(*both) for both in zip((rows, row_grads), passing.more, strict=True))
                some = passing.pairs(pairs)
                found = kernels.backward(x, passing.features, scale, bias, some, sums, gradients, chunk_size=chunk_size)
                x_grad += found[0]
                y_grad += found[1]
                (y_grad,) = _hand_on(y_grad)
                passing.receive()
        factor = scale.to(rows.dtype)
        bias_grad = None
        if wants_bias:
            total = op.bias_grad(rows, columns, row_grads, column_grads, pairs.hardness)
            bias_grad = total.to(bias.dtype).view(bias.shape)
        return (
            (x_grad * factor).to(x.dtype) if wants_x else None,
            (y_grad * factor).to(y.dtype) if wants_y else None,
            (x_grad * x).sum().to(scale.dtype).view(scale.shape) if wants_scale else None,
            bias_grad,
            None,
            None,
            None,
        )


class _Passing:
    """Hold the texts of one process, first one's own, and what belongs to them; each step those of the process before."""

    def __init__(self, features: Tensor, side: Side, *more: Tensor) -> None:
        self._side = side
        self._tensors = [features, *(part for part in side if part is not None), *more]
        self._tensors = [tensor.detach().contiguous() for tensor in self._tensors]
        self._owner = dist.get_rank()
        self._n_more = len(more)

    @property
    def features(self) -> Tensor:
        """Return the features of the texts that are here now."""
        return self._tensors[0]

    @property
    def more(self) -> list[Tensor]:
        """Return what else came with them."""
        return self._tensors[len(self._tensors) - self._n_more :]

    def pairs(self, own: Pairs) -> Pairs:
        """Return the pairs of this process's rows with the texts that are here now; only its own hold positives."""
        present = iter(self._tensors[1:])
        side = Side(*(None if part is None else next(present) for part in self._side))
        offset = own.offset if self._owner == dist.get_rank() else len(self.features)
        return dataclasses.replace(own, columns=side, offset=offset)

    def send_ahead(self) -> None:
        """Start to exchange them for the next ones, while these are still worked with."""
        self._coming, self._requests = _exchange(self._tensors)

    def receive(self) -> None:
        """Wait for the next ones."""
        for request in self._requests:
            request.wait()
        self._tensors = self._coming
        self._owner = (self._owner - 1) % dist.get_world_size()


def _hand_on(*tensors: Tensor) -> list[Tensor]:
    """Give tensors to the next process and return those of the one before."""
    coming, requests = _exchange([tensor.contiguous() for tensor in tensors])
    for request in requests:
        request.wait()
    return coming


def _exchange(tensors: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """Start to send tensors to the next process and to receive those of the one before."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return tensors, []
    coming = [torch.empty_like(tensor) for tensor in tensors]
    following, before = (rank + 1) % world_size, (rank - 1) % world_size
    sends = [dist.P2POp(dist.isend, tensor, following) for tensor in tensors]
    return coming, dist.batch_isend_irecv(sends + [dist.P2POp(dist.irecv, tensor, before) for tensor in coming])
