"""A fixed temperature of a CLIP model, instead of a learned one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from clip_negatives.host.method import Method, check_temperature

_held = WeakTensorKeyDictionary()  # log-scales of `hold_temperature`, which still require a gradient


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
        _held[logit_scale] = True
    if optimizer is not None:
        optimizer.state.pop(logit_scale, None)


def check_temperature_of(model: nn.Module | None, weighting: str) -> None:
    """Raise an `InputError` if `weighting` needs a fixed temperature, and a parameter ``logit_scale`` of `model` is learned."""
    for name, parameter in () if model is None else model.named_parameters():
        if name.rpartition(".")[2] == "logit_scale" and parameter.requires_grad and parameter not in _held:
            remedy = f"Fix the parameter {name} of the model first, with clip_negatives.hold_temperature"
            Method(weighting=weighting).check_fixed_temperature(remedy)
