"""A second model that encodes each batch, for weightings that learn from its features."""

from __future__ import annotations

from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip_train.precision import get_autocast
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clip_negatives.distributed.gather import copy_from_first
from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip.untrusted import load_checkpoint
from clip_negatives.step import Towers
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.safe_reading import read_tensors_and_metadata


class Teacher:
    """A model of open_clip without gradients, in evaluation mode.

    Args:
        model: the model.
        args: open_clip's arguments: the precision, and the device.
    """

    def __init__(self, model: nn.Module, args: Namespace) -> None:
        self.model, self.args = model.requires_grad_(False).eval(), args

    @torch.no_grad()
    def __call__(self, batch: tuple[Any, ...]) -> Towers:
        """Return the features of a batch ``(images, tokens)``, unit norm, each of shape (B, D)."""
        model: Any = self.model
        device = self.args.device
        images = batch[0].to(device, open_clip.get_input_dtype(self.args.precision), non_blocking=True)
        tokens = batch[1].to(device, non_blocking=True)
        with get_autocast(self.args.precision, device_type=torch.device(device).type)():
            return Towers(model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True))

    def write(self, file: Path) -> None:
        """Write the weights, if they change during the training."""

    def read(self, file: Path) -> None:
        """Restore the weights that `write` wrote."""


class MovingAverage(Teacher):
    """The exponential moving average of the model that is trained, updated after each step of the optimizer.

    Weights are averaged as ``average = decay * average + (1 - decay) * weights``. Buffers, such as those of BatchNorm, are
    copied, from process 0 as in `DistributedDataParallel`.

    Args:
        model: the model that is trained.
        args: open_clip's arguments.
        decay: share of the old average, 0 .. 1.
        optimizer: the optimizer of the training.
    """

    def __init__(self, model: nn.Module, args: Namespace, decay: float, optimizer: Optimizer) -> None:
        super().__init__(deepcopy(model), args)
        self._trained, self._average = model, get_ema_multi_avg_fn(decay)
        optimizer.register_step_post_hook(self._update)

    def _update(self, *_: Any) -> None:
        with torch.no_grad():
            self._average(list(self.model.parameters()), list(self._trained.parameters()), 0)
            for own, trained in zip(self.model.buffers(), self._trained.buffers(), strict=True):
                own.copy_(trained)
            if self.args.world_size > 1:  # each process has the statistics of its own samples
                copy_from_first(self.model.buffers())

    def write(self, file: Path) -> None:
        """Write the weights."""
        with replaced_file(file) as partial:
            write_tensors({name: value.cpu() for name, value in self.model.state_dict().items()}, partial, {})

    def read(self, file: Path) -> None:
        """Restore the weights that `write` wrote."""
        try:
            self.model.load_state_dict(read_tensors_and_metadata(file)[0])
        except (OSError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"The moving average at {file} is missing, damaged or of another model. Resume from the run's own checkpoints."
            ) from error


def fixed_teacher(checkpoint: str, args: Namespace) -> Teacher:
    """Return the model of ``--model`` and its options with the weights of a checkpoint of open_clip's training."""
    with torch.random.fork_rng(devices=[]):  # the model begins with random weights
        model = open_clip.create_model(args.model, device=args.device, output_dict=True, **_model_options(args))
    try:
        stored = load_checkpoint(checkpoint, map_location="cpu")
    except ArtifactError as error:
        raise ArtifactError(f"{checkpoint} is no checkpoint of open_clip's training. Name one with --teacher.") from error
    weights = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    try:
        model.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    except (AttributeError, RuntimeError) as error:
        raise ArtifactError(
            f"The checkpoint {checkpoint} has no weights of the model {args.model}. Name one of this model with --teacher."
        ) from error
    return Teacher(model, args)


def _model_options(args: Namespace) -> dict[str, Any]:
    """Return the options with which open_clip's training creates its model, apart from weights and dropout."""
    names = ("precision", "force_quick_gelu", "force_custom_text", "force_image_size", "force_context_length")
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return options | ({"init_logit_bias": -10.0} if getattr(args, "siglip", False) else {})
