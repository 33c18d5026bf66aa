"""Hold the temperature of a CLIP model instead of learning it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from clip_negatives.errors import InputError

LOWEST, HIGHEST = 0.01, 1.0
"""What CLIP's training lets a learned temperature be: it clamps ``logit_scale`` to 0 .. ln 100 after each step."""


def check_temperature(temperature: float) -> float:
    """Return `temperature`.

    Raises:
        InputError: it is not 0.01 .. 1.
    """
    if not LOWEST <= temperature <= HIGHEST:
        raise InputError(
            f"Expected a temperature of {LOWEST} .. {HIGHEST:g}, which CLIP's training keeps to, got {temperature}."
        )
    return temperature


def hold_temperature(logit_scale: Tensor, temperature: float, optimizer: Optimizer | None = None) -> None:
    """Set a learnable log-scale to ``ln(1 / temperature)`` and keep it there.

    Its gradient is zero from here on, not absent, because distributed training waits for the gradient of every parameter.
    An optimizer that does not decay the scale, as open_clip's does not, leaves it as it is. To be called once, before the
    first step.

    Args:
        logit_scale: the parameter ``model.logit_scale`` of open_clip, any shape.
        temperature: 0.01 .. 1; logits are cosines divided by it.
        optimizer: what else would move the scale, by what it remembers of a training in which the scale was learned.

    Raises:
        InputError: the temperature is out of range.
    """
    value = -math.log(check_temperature(temperature))
    with torch.no_grad():
        logit_scale.fill_(value)
    if logit_scale.requires_grad:
        logit_scale.register_hook(torch.zeros_like)
    if optimizer is not None:
        optimizer.state.pop(logit_scale, None)
