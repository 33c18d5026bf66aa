"""The loss terms and the losses that the code of a plugin computes at a step, checked."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss, StepTerms
from clip_negatives.anchors import Anchors
from clip_negatives.errors import InputError, PluginError
from clip_negatives.interfaces import LossTerms
from clip_negatives.plugin_code import reported
from clip_negatives.step import Step, Towers

LOOKS = 100  # steps between two looks at what a GPU has found: a look waits for it


def terms_of(loss: StepTerms, step: Step, *, check_values: bool = False) -> LossTerms:
    """Return the terms of the samples of a step; `check_values` waits for a GPU.

    Raises:
        PluginError: the plugin stops with an exception.
        InputError: the terms do not fit the batch or need gradients, or a value is NaN or out of range.
    """
    with reported(title(loss)):
        terms = loss.terms(step)
    try:
        terms.check(len(step.features.image), step.features.image.device)
        if check_values:
            terms.check_values()
    except InputError as error:
        raise InputError(f"{title(loss)} returns wrong terms: {error}") from error
    if trained := [name for name, value in terms.tensors().items() if value.requires_grad]:
        fault = f"The {trained[0]} of the terms of the step needs gradients, which loss terms do not get"
        raise InputError(f"{fault}. Detach it, or subclass AnchorLoss and define forward.")
    return terms


def losses_of(loss: AnchorLoss, sides: Iterable[Anchors]) -> Tensor:
    """Return the loss of each anchor, of all sides in one vector.

    Raises:
        PluginError: the plugin stops with an exception, or its losses have a wrong shape or do not depend on the features.
    """
    parts, needs_gradients = [], False
    for side in sides:
        with reported(title(loss)):
            losses = loss(side)
        needed = (len(side.logits),)
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if shape != needed:
            fault = f"forward must return the loss of each anchor, shape {needed}, got {shape}"
            raise PluginError(f"{type(loss).__name__}.{fault}. Repair the plugin.")
        parts.append(losses)
        needs_gradients |= side.logits.requires_grad
    together = torch.cat(parts)
    if needs_gradients and not together.requires_grad:
        raise PluginError(f"{title(loss)} returns losses that do not depend on the features. Do not detach all logits.")
    return together


def title(loss: AnchorLoss) -> str:
    """Return what messages call a loss."""
    return f"The weighting {loss.name or type(loss).__name__}"


class FiniteLosses:
    """Watch that losses are finite if features are. On a GPU, what was found is read every `LOOKS` steps."""

    def __init__(self) -> None:
        self._faulty: Tensor | None = None
        self._steps = 0

    @torch.no_grad()
    def check(self, loss: AnchorLoss, losses: Tensor, features: Towers, scale: Tensor) -> None:
        """Raise PluginError if losses are NaN or infinite, but all features and the scale are finite."""
        if torch.compiler.is_compiling():
            return
        faulty = ~losses.isfinite().all()
        if faulty.device.type != "cpu" or bool(faulty):
            for values in (features.image, features.text, scale):
                faulty &= values.isfinite().all()
        self._faulty = faulty if self._faulty is None else self._faulty | faulty
        self._steps += 1
        if (faulty.device.type == "cpu" or self._steps % LOOKS == 1) and bool(self._faulty):
            raise PluginError(
                f"{title(loss)} makes the loss NaN or infinite, while the features are finite. Return finite numbers; only a "
                "log-weight may be -inf, which removes its pair. Repair the plugin."
            )
