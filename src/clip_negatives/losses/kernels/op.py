"""The sums over pairs as a custom operator of torch, with its own derivative: one node in a compiled graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_negatives.losses.kernels import chunked
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import (
    IMPORTANCE,
    LOG_SUMS,
    MATE_LOGITS,
    N_MATES,
    NEGATIVES,
    TARGET_LOGITS,
    TARGET_NORM,
    PairSums,
    empty_sums,
)
from clip_negatives.terms import LossTerms

INPUTS = "Tensor x, Tensor y, Tensor scale, Tensor? bias, Tensor?[] tensors"
PAIR_OPTIONS = "int offset, bool columns_too, float hardness, bool importance, bool count, bool mixed_signs"
OPTIONS = f"{PAIR_OPTIONS}, str backend, int? chunk_size"
FORWARD = f"({INPUTS}, {OPTIONS}) -> (Tensor, Tensor)"
BACKWARD = f"(Tensor[] sums, Tensor[] grads, {INPUTS}, bool[] wants, {OPTIONS}) -> (Tensor, Tensor)"


def pair_sums(inputs: Inputs, pairs: Pairs, *, backend: str, chunk_size: int | None = None) -> PairSums:
    """Return the sums of the rows and columns by "chunked" or "triton"; differentiable in all inputs."""
    x, y = (autocast(side, backend) for side in (inputs.x, inputs.y))
    if not torch.compiler.is_compiling():
        return PairSums(*_EagerPairSums.apply(pairs, backend, chunk_size, x, y, inputs.scale, inputs.bias))
    flags = pairs.importance, pairs.count, pairs.mixed_signs
    options = pairs.offset, pairs.columns_too, pairs.hardness, *flags, backend, chunk_size
    return PairSums(*_pair_sums(x, y, inputs.scale, inputs.bias, _tensors(pairs), *options))


class _EagerPairSums(torch.autograd.Function):
    """The same sums outside of compiled graphs, without the dispatch of a custom operator, which takes up to 1 ms a step.

    The chunked backend can also keep a block for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, pairs: Pairs, backend: str, chunk_size: int | None, *inputs: Any) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        ctx.options = {"chunk_size": chunk_size}
        options = ctx.options | ({"kept": kept} if backend == "chunked" else {})
        with torch.autocast(inputs[0].device.type, enabled=False):
            sums = backend_named(backend).forward(Inputs(*inputs), pairs, **options)
        ctx.save_for_backward(*inputs, *sums, *kept)
        ctx.pairs, ctx.kernels = pairs, backend_named(backend)
        return sums.rows, sums.columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, rows, columns, *kept = ctx.saved_tensors
        inputs, wants = Inputs(x, y, scale, bias), ctx.needs_input_grad[3:]
        sums, sum_grads = PairSums(rows, columns), PairSums(*grads)
        # Logits are linear in the scale, so its gradient follows from that of x.
        side_wants = (wants[0] or wants[2], wants[1])
        options = ctx.options | ({"kept": kept} if kept else {})
        with torch.autocast(x.device.type, enabled=False):
            sides = ctx.kernels.backward(inputs, ctx.pairs, sums, sum_grads, side_wants, **options)
        return None, None, None, *input_gradients(inputs, wants, sides, sums, sum_grads, ctx.pairs.hardness)


def autocast(features: Tensor, backend: str) -> Tensor:
    """Return features in autocast's dtype, if autocast is on and the backend supports it."""
    if backend == "triton" and torch.is_autocast_enabled(features.device.type):
        return features.to(torch.get_autocast_dtype(features.device.type))
    return features


def backend_named(name: str) -> Any:
    """Return the module of a backend."""
    if name == "chunked":
        return chunked
    from clip_negatives.losses.kernels import fused  # imports triton

    return fused


def _tensors(pairs: Pairs) -> list[Tensor | None]:
    """Return the tensor fields of the rows, the tensor fields of the columns, and the limits."""
    fields = [getattr(terms, name) for terms in (pairs.rows, pairs.columns) for name in LossTerms.tensor_fields()]
    return [*fields, pairs.row_limits, pairs.column_limits]


def _pairs(tensors: list[Tensor | None], offset: int, columns_too: bool, hardness: float, *sums: bool) -> Pairs:
    names, n = list(LossTerms.tensor_fields()), len(LossTerms.tensor_fields())
    rows = LossTerms(hardness=hardness).replace(**dict(zip(names, tensors[:n], strict=True)))
    columns = LossTerms().replace(**dict(zip(names, tensors[n:-2], strict=True)))
    return Pairs(rows, columns, tensors[-2], tensors[-1], offset, columns_too, *sums)


@torch.library.custom_op("clip_negatives::pair_sums", mutates_args=(), schema=FORWARD)
def _pair_sums(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, tensors: Any, *options: Any) -> Any:
    *fields, backend, chunk_size = options
    with torch.autocast(x.device.type, enabled=False):
        sums = backend_named(backend).forward(Inputs(x, y, scale, bias), _pairs(tensors, *fields), chunk_size=chunk_size)
    return sums.rows, sums.columns


@_pair_sums.register_fake
def _(x: Tensor, y: Tensor, scale: Any, bias: Any, tensors: Any, offset: int, columns_too: bool, *options: Any) -> Any:
    like = x.new_empty(0, dtype=Inputs(x, y, scale, bias).precision())
    return empty_sums(x.shape[0], like), empty_sums(y.shape[0] if columns_too else 0, like)


@torch.library.custom_op("clip_negatives::pair_sums_backward", mutates_args=(), schema=BACKWARD)
def _pair_sums_backward(
    sums: Any, grads: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, tensors: Any, wants: Any, *options: Any
) -> Any:
    *fields, backend, chunk_size = options
    arguments = (Inputs(x, y, scale, bias), _pairs(tensors, *fields), PairSums(*sums), PairSums(*grads), wants)
    with torch.autocast(x.device.type, enabled=False):
        gradients = backend_named(backend).backward(*arguments, chunk_size=chunk_size)
    return tuple(sums[0].new_empty(0) if gradient is None else gradient for gradient in gradients)


@_pair_sums_backward.register_fake
def _(sums: Any, grads: Any, x: Tensor, y: Tensor, scale: Any, bias: Any, tensors: Any, wants: Any, *options: Any) -> Any:
    return tuple(sums[0].new_empty(side.shape if needed else (0,)) for side, needed in zip((x, y), wants, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, y, scale, bias, tensors, *ctx.options = inputs
    ctx.save_for_backward(*output, x, y, scale, bias, *tensors)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    rows, columns, x, y, scale, bias, *tensors = ctx.saved_tensors
    sums, wants = PairSums(rows, columns), ctx.needs_input_grad[:4]
    # Logits are linear in the scale, so its gradient follows from that of x.
    side_wants = [wants[0] or wants[2], wants[1]]
    sides = _pair_sums_backward([rows, columns], list(grads), x, y, scale, bias, tensors, side_wants, *ctx.options)
    gradients = input_gradients(Inputs(x, y, scale, bias), wants, sides, sums, PairSums(*grads), ctx.options[2])
    # One None for the whole list: torch requires this if the list contains None, and here neighbours are always None.
    return *gradients, None, *(None for _ in ctx.options)


def input_gradients(
    inputs: Inputs, wants: Sequence[bool], sides: Sequence[Tensor], sums: PairSums, grads: PairSums, hardness: float
) -> list[Tensor | None]:
    """Return the wanted gradients of x, y, scale and bias; `sides` are the gradients of ``scale * x`` and ``scale * y``."""
    x, y, scale, bias = inputs
    factor = scale.to(sums.rows.dtype)
    return [
        (sides[0] * factor).to(x.dtype) if wants[0] else None,
        (sides[1] * factor).to(y.dtype) if wants[1] else None,
        (sides[0] * x).sum().to(scale.dtype).view(scale.shape) if wants[2] else None,
        _bias_grad(sums, grads, hardness).to(bias.dtype).view(bias.shape) if bias is not None and wants[3] else None,
    ]


def _bias_grad(sums: PairSums, grads: PairSums, hardness: float) -> Tensor:
    """Return the gradient of the bias: it shifts all logits, and so every sum that is not empty."""
    total = sums.rows.new_zeros(())
    for side, gradients in zip(sums, grads, strict=True):
        for part in range(LOG_SUMS):
            slope = {NEGATIVES: 1.0 + hardness, IMPORTANCE: hardness}.get(part, 1.0)
            total = total + slope * gradients[part].masked_fill(side[part] == -torch.inf, 0.0).sum()
        total = total + (gradients[MATE_LOGITS] * side[N_MATES]).sum()
        total = total + gradients[TARGET_LOGITS].masked_fill(side[TARGET_NORM] == -torch.inf, 0.0).sum()
    return total


_pair_sums.register_autograd(_backward, setup_context=_setup_context)
