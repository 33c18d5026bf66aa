"""A fixed temperature of a CLIP model, instead of a learned one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from clip_negatives.host.method import check_temperature


def hold_temperature(logit_scale: Tensor, temperature: float, optimizer: Optimizer | None = None) -> None:
    """Set a learnable log-scale to ``ln(1 / temperature)`` for the whole training; call this once, before the first step.

    The gradient of the scale becomes zero. It is not absent, because distributed training waits for the gradient of every
    parameter. The optimizer must not apply weight decay to the scale; open_clip's does not.

    Args:
        logit_scale: the parameter ``model.logit_scale`` of open_clip, any shape.
        temperature: 0.01 .. 1; logits are cosines divided by it.
        optimizer: its momentum for the scale is dropped, because it would move the scale after a resume.

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
