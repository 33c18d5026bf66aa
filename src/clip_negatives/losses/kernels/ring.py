"""Sums over the pairs of all processes, in a ring of processes: no process holds the samples of all.

Every process keeps its images and passes texts to the next process, with the per-sample fields and column sums of these texts.
With P processes, all texts are back after P steps. The backward pass sends texts round once more, with their gradients.
Gradients are those of the summed losses of all processes, as with open_clip's ``--local-loss --gather-with-grad``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from clip_negatives.losses.kernels import op
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import PairSums, add_sums, empty_sums


def pair_sums(inputs: Inputs, pairs: Pairs, *, backend: str, chunk_size: int | None = None) -> PairSums:
    """Return the sums of this process's rows and columns, B each, over the samples of all processes.

    All processes must call this together, with the same number of samples; `pairs` are those of the process's own samples.
    torch.compile breaks the graph here.
    """
    x, y = (op.autocast(side, backend) for side in (inputs.x, inputs.y))
    return PairSums(*_Ring.apply(pairs, backend, chunk_size, x, y, inputs.scale, inputs.bias))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, backend: str, chunk_size: int | None, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, y, scale, bias = inputs
        kernels = op.backend_named(backend)
        like = x.new_empty(0, dtype=Inputs(*inputs).precision())
        rows, columns = empty_sums(len(x), like), empty_sums(len(y), like)
        with torch.autocast(x.device.type, enabled=False):
            for texts, step_pairs, _ in _texts_of_all(y, pairs):
                sums = kernels.forward(Inputs(x, texts, scale, bias), step_pairs, chunk_size=chunk_size)
                add_sums(rows, sums.rows)
                add_sums(columns, sums.columns)
                columns = _pass_on(columns)
        ctx.save_for_backward(x, y, scale, bias, rows, columns)
        ctx.options = pairs, backend, chunk_size
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, rows, columns = ctx.saved_tensors
        pairs, backend, chunk_size = ctx.options
        kernels = op.backend_named(backend)
        x_grad, y_grad = (torch.zeros(side.shape, dtype=rows.dtype, device=side.device) for side in (x, y))
        with torch.autocast(x.device.type, enabled=False):
            for texts, step_pairs, text_sums in _texts_of_all(y, pairs, columns, grads[1]):
                sums, gradients = (PairSums(*sides) for sides in zip((rows, grads[0]), text_sums, strict=True))
                inputs = Inputs(x, texts, scale, bias)
                step_grads = kernels.backward(inputs, step_pairs, sums, gradients, (True, True), chunk_size=chunk_size)
                x_grad += step_grads[0]
                y_grad = _pass_on(y_grad.add_(step_grads[1]))
        sums, gradients, wants = PairSums(rows, columns), PairSums(*grads), ctx.needs_input_grad[3:]
        inputs = Inputs(x, y, scale, bias)
        return None, None, None, *op.input_gradients(inputs, wants, (x_grad, y_grad), sums, gradients, pairs.hardness)


def _texts_of_all(features: Tensor, pairs: Pairs, *sums: Tensor) -> Iterator[tuple[Tensor, Pairs, list[Tensor]]]:
    """Yield the texts of each process in turn, with their pairs and sums: first of this process, then of the previous one.

    The pairs are those of this process's rows with these texts; only the process's own texts contain the positives.
    """
    names, limits = list(pairs.columns.tensors()), [] if pairs.column_limits is None else [pairs.column_limits]
    fields = [features, *pairs.columns.tensors().values(), *limits]
    tensors = [tensor.detach().contiguous() for tensor in [*fields, *sums]]
    for step in range(dist.get_world_size()):
        received, requests = _exchange(tensors)  # receive the next texts while these are in use
        columns = pairs.columns.replace(**dict(zip(names, tensors[1:], strict=False)))
        column_limits, offset = tensors[len(fields) - 1] if limits else None, len(features) if step else pairs.offset
        step_pairs = dataclasses.replace(pairs, columns=columns, column_limits=column_limits, offset=offset)
        yield tensors[0], step_pairs, tensors[len(fields) :]
        for request in requests:
            request.wait()
        tensors = received


def _pass_on(tensor: Tensor) -> Tensor:
    """Send a tensor to the next process; return the tensor from the previous process."""
    (received,), requests = _exchange([tensor.contiguous()])
    for request in requests:
        request.wait()
    return received


def _exchange(tensors: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """Start to send tensors to the next process, and to receive as many from the previous process."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return tensors, []
    received = [torch.empty_like(tensor) for tensor in tensors]
    following, previous = (rank + 1) % world_size, (rank - 1) % world_size
    sends = [dist.P2POp(dist.isend, tensor, following) for tensor in tensors]
    return received, dist.batch_isend_irecv(sends + [dist.P2POp(dist.irecv, tensor, previous) for tensor in received])
