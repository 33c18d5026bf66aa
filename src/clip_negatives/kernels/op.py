"""The sums over pairs as an operator of torch, so that compilers take it as one node and autograd knows its derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clip_negatives.kernels import chunked
from clip_negatives.kernels.pairs import IMPORTANCE, LOGARITHMIC, NEGATIVES, Pairs, PairSums, Side, sum_dtype

N_OPTIONAL = 12
"""Tensors that may be absent, in the order of `_flat`."""


def pair_sums(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, pairs: Pairs, *, backend: str, chunk_size: int | None = None
) -> PairSums:
    """Return the sums of the rows x, shape (B, D), and columns y, shape (G, D), see `clip_negatives.kernels.pairs.PairSums`.

    Differentiable in x, y, scale and bias. `backend` is "chunked" or "triton".
    """
    x, y = (autocast(side, backend) for side in (x, y))
    how = (pairs.offset, pairs.columns_too, pairs.hardness, pairs.importance, pairs.count, backend, chunk_size)
    rows, columns = _pair_sums(x, y, scale, bias, *_flat(pairs), *how)
    return PairSums(rows, columns)


def autocast(features: Tensor, backend: str) -> Tensor:
    """Return features in the precision of autocast's products, where it is on and the backend computes in it."""
    if backend == "triton" and torch.is_autocast_enabled(features.device.type):
        return features.to(torch.get_autocast_dtype(features.device.type))
    return features


def backend_named(name: str) -> Any:
    """Return the module of a backend."""
    if name == "chunked":
        return chunked
    from clip_negatives.kernels import fused  # imports triton

    return fused


def _flat(pairs: Pairs) -> tuple[Tensor | None, ...]:
    return (pairs.image_table, pairs.text_table, *pairs.rows, *pairs.columns)


@torch.library.custom_op("clip_negatives::pair_sums", mutates_args=())
def _pair_sums(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    image_table: Tensor | None,
    text_table: Tensor | None,
    row_image_labels: Tensor | None,
    row_text_labels: Tensor | None,
    row_factors: Tensor | None,
    row_groups: Tensor | None,
    row_limits: Tensor | None,
    column_image_labels: Tensor | None,
    column_text_labels: Tensor | None,
    column_factors: Tensor | None,
    column_groups: Tensor | None,
    column_limits: Tensor | None,
    offset: int,
    columns_too: bool,
    hardness: float,
    importance: bool,
    count: bool,
    backend: str,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    rows = Side(row_image_labels, row_text_labels, row_factors, row_groups, row_limits)
    columns = Side(column_image_labels, column_text_labels, column_factors, column_groups, column_limits)
    pairs = Pairs(rows, columns, image_table, text_table, offset, columns_too, hardness, importance, count)
    with torch.autocast(x.device.type, enabled=False):
        sums: PairSums = backend_named(backend).forward(x, y, scale, bias, pairs, chunk_size=chunk_size)
    return sums.rows, sums.columns


@_pair_sums.register_fake
def _(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    columns_too = rest[N_OPTIONAL + 3]
    dtype = sum_dtype(x, y)
    return x.new_empty(6, x.shape[0], dtype=dtype), x.new_empty(6, y.shape[0] if columns_too else 0, dtype=dtype)


@torch.library.custom_op("clip_negatives::pair_sums_backward", mutates_args=())
def _pair_sums_backward(
    row_grads: Tensor,
    column_grads: Tensor,
    rows: Tensor,
    columns: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    image_table: Tensor | None,
    text_table: Tensor | None,
    row_image_labels: Tensor | None,
    row_text_labels: Tensor | None,
    row_factors: Tensor | None,
    row_groups: Tensor | None,
    row_limits: Tensor | None,
    column_image_labels: Tensor | None,
    column_text_labels: Tensor | None,
    column_factors: Tensor | None,
    column_groups: Tensor | None,
    column_limits: Tensor | None,
    wants_x: bool,
    wants_y: bool,
    offset: int,
    columns_too: bool,
    hardness: float,
    importance: bool,
    count: bool,
    backend: str,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    of_rows = Side(row_image_labels, row_text_labels, row_factors, row_groups, row_limits)
    of_columns = Side(column_image_labels, column_text_labels, column_factors, column_groups, column_limits)
    pairs = Pairs(of_rows, of_columns, image_table, text_table, offset, columns_too, hardness, importance, count)
    sums, grads = PairSums(rows, columns), PairSums(row_grads, column_grads)
    with torch.autocast(x.device.type, enabled=False):
        found = backend_named(backend).backward(
            x, y, scale, bias, pairs, sums, grads, wants=(wants_x, wants_y), chunk_size=chunk_size
        )
    none = rows.new_empty(0)
    return tuple(none.clone() if grad is None else grad for grad in found)  # type: ignore[return-value]


@_pair_sums_backward.register_fake
def _(row_grads: Tensor, column_grads: Tensor, rows: Tensor, columns: Tensor, x: Tensor, y: Tensor, *rest: Any) -> Any:
    wants = rest[N_OPTIONAL + 2 : N_OPTIONAL + 4]
    return tuple(rows.new_empty(side.shape if wanted else (0,)) for side, wanted in zip((x, y), wants, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.how = inputs[: 4 + N_OPTIONAL], inputs[4 + N_OPTIONAL :]
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    rows, columns, x, y, scale, bias, *optional = ctx.saved_tensors
    row_grads, column_grads = grads
    wants_x, wants_y, wants_scale, wants_bias = ctx.needs_input_grad[:4]
    # Logits are linear in the scale, so its gradient needs no pass of its own, but that of x.
    tensors = (row_grads, column_grads, rows, columns, x, y, scale, bias, *optional)
    x_grad, y_grad = _pair_sums_backward(*tensors, wants_x or wants_scale, wants_y, *ctx.how)
    factor = scale.to(rows.dtype)
    hardness = ctx.how[2]
    return (
        (x_grad * factor).to(x.dtype) if wants_x else None,
        (y_grad * factor).to(y.dtype) if wants_y else None,
        (x_grad * x).sum().to(scale.dtype).view(scale.shape) if wants_scale else None,
        bias_grad(rows, columns, row_grads, column_grads, hardness).to(bias.dtype).view(bias.shape) if wants_bias else None,
        *(None for _ in optional),
        *(None for _ in ctx.how),
    )


def bias_grad(rows: Tensor, columns: Tensor, row_grads: Tensor, column_grads: Tensor, hardness: float) -> Tensor:
    """Return dL of the bias: it moves every sum by as much as the logits do, wherever there is anything to sum."""
    total = rows.new_zeros(())
    for sums, grads in ((rows, row_grads), (columns, column_grads)):
        for part in range(LOGARITHMIC):
            slope = {NEGATIVES: 1.0 + hardness, IMPORTANCE: hardness}.get(part, 1.0)
            total = total + slope * grads[part].masked_fill(sums[part] == -torch.inf, 0.0).sum()
        total = total + (grads[LOGARITHMIC] * sums[LOGARITHMIC + 1]).sum()
    return total


_pair_sums.register_autograd(_backward, setup_context=_setup_context)
