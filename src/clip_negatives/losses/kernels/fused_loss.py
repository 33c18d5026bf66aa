"""Losses of the anchors on the triton backend, for pairs without groups, margin, debiasing and targets.

`objective` computes the same losses with many small operations. Each is a launch, and launches take most of the time of a small
batch. Here, a step of one block of pairs launches fewer kernels than open_clip's loss.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip_negatives.losses.kernels import anchor_kernels, op, weight_sums
from clip_negatives.losses.kernels.fused import LARGEST, Levels, slope_products, write_sums
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.problem import Problem
from clip_negatives.losses.kernels.sums import TARGET_NORM, PairSums

BLOCK = 32  # anchors of one program
FEATURE_BLOCK = 64  # features that a program reads at a time
HISTOGRAM_PAIRS = 8192 * 8192  # below this, the launches of a histogram take longer than exponentials of all pairs; an estimate


class LossOptions(NamedTuple):
    """What the losses depend on beside the sums."""

    normalized: bool
    positive_weight: float
    from_histogram: bool
    chunk_size: int | None


def anchor_losses(inputs: Inputs, pairs: Pairs, options: LossOptions) -> Tensor:
    """Return the losses of the rows and then of the columns, float32, shape (n,); differentiable in features and scale.

    The gradient of the bias is 0, because a shift of all logits of an anchor changes no loss.
    """
    losses: Tensor = _FusedLosses.apply(pairs, options, *inputs)
    return losses


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, options: LossOptions, *inputs: Any) -> Tensor:
        x, y, scale, bias = inputs
        x, y = x.contiguous(), y.contiguous()
        n = len(x)
        n_anchors = n + len(y) * pairs.columns_too
        ctx.autocast = [op.autocast(side, "triton").dtype for side in (x, y)]
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
            problem = _problem(ctx.autocast, Inputs(x, y, scale, bias), pairs)
            sums = x.new_empty(TARGET_NORM + 1, n_anchors, dtype=torch.float32)
            sides = PairSums(sums[:, :n], sums[:, n:])
            write_sums(problem, sides, options.chunk_size)
            if options.from_histogram:
                sums = torch.cat(weight_sums.add(sides, pairs, len(y)), 1)
            losses: Tensor = sums.new_empty(n_anchors)
            shares = torch.empty_like(losses)
            log_alpha = math.log(options.positive_weight) if options.positive_weight else 0.0
            sizes = n, n_anchors, pairs.offset, x.shape[1], log_alpha
            flags = {"COLUMNS": pairs.columns_too, "NORMALIZED": options.normalized, "BLOCK": BLOCK, "BK": FEATURE_BLOCK}
            programs = (_programs(n),)
            anchor_kernels.losses_kernel[programs](
                x, y, scale, bias, sums, losses, shares, *sizes, **flags, DECOUPLED=options.positive_weight == 0
            )
        ctx.save_for_backward(x, y, scale, bias, sums, shares)
        ctx.pairs, ctx.chunk_size = pairs, options.chunk_size
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, sums, shares = ctx.saved_tensors
        _, _, *wants = ctx.needs_input_grad
        pairs = ctx.pairs if ctx.pairs.hardness else dataclasses.replace(ctx.pairs, importance=False)
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
            problem = _problem(ctx.autocast, Inputs(x, y, scale, bias), pairs)
            levels, factor = _levels(problem, sums, shares, upstream)
            products = slope_products(problem, levels, (wants[0] or wants[2], wants[1]), x.shape[1], ctx.chunk_size)
            dots = sums.new_empty(len(x)) if wants[2] else None
            uniform = not pairs.mixed_signs
            flags = {"COLUMNS": pairs.columns_too, "UNIFORM": uniform, "BLOCK": BLOCK, "BK": FEATURE_BLOCK}
            grads: list[Tensor | None] = [None, None]
            for side, (own, other, shift) in enumerate(((x, y, pairs.offset), (y, x, -pairs.offset))):
                product = products[side]
                if product is None:
                    continue
                grads[side] = torch.empty_like(own)
                given = product, own, other, scale, shares, upstream, upstream.stride(0), factor, grads[side]
                sizes = len(own), own.shape[1], len(x), min(shift, 0), shift
                anchor_kernels.gradients_kernel[(_programs(len(own)),)](*given, None if side else dots, *sizes, **flags)
        scale_grad = None if dots is None else dots.sum().to(scale.dtype).view(scale.shape)
        bias_grad = torch.zeros_like(bias) if bias is not None and wants[3] else None
        return None, None, grads[0] if wants[0] else None, grads[1], scale_grad, bias_grad


def _problem(dtypes: list[torch.dtype], inputs: Inputs, pairs: Pairs) -> Problem:
    """Return the problem with the features in the dtypes of the products."""
    x, y = (side.to(dtype) for side, dtype in zip(inputs[:2], dtypes, strict=True))
    return Problem(inputs._replace(x=x, y=y), pairs)


def _levels(problem: Problem, sums: Tensor, shares: Tensor, upstream: Tensor) -> tuple[Levels, Tensor]:
    """Return the levels for the slopes, and the factor that their gradients are divided by, shape ()."""
    pairs, (_, n) = problem.pairs, sums.shape
    largest = torch.linalg.vector_norm(upstream * shares, torch.inf) if pairs.mixed_signs else shares.amax()
    levels, grads = sums.new_empty(2, 1 + pairs.importance, n)
    factor = sums.new_empty(())
    given = sums, shares, upstream, upstream.stride(0), largest, *problem.tops, levels, grads, factor, n
    flags = {"UNIFORM": not pairs.mixed_signs, "IMPORTANCE": pairs.importance, "BLOCK": BLOCK}
    anchor_kernels.levels_kernel[(_programs(n),)](*given, (1 + pairs.hardness) / LARGEST, **flags)
    rows = slice(0, len(problem.x))
    columns = slice(len(problem.x), None)
    return Levels(levels[:, rows], grads[:, rows], levels[:, columns], grads[:, columns]), factor


def _programs(n: int) -> int:
    return -(-n // BLOCK)
