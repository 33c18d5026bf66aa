"""Images through any timm model."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder, batched, device, one_line
from clip_negatives.errors import DataError, UnknownNameError

BATCH = 64
"""Images that go through the model together."""


def from_name(argument: str) -> Encoder:
    """Return an encoder by ``NAME`` (timm's pretrained weights) or ``NAME@FILE`` (weights from a file)."""
    import timm

    name, _, file = argument.partition("@")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f"such as {', '.join(near)}" if near else "see timm.list_models()"
        raise UnknownNameError(f"Expected the name of a timm model ({hint}), got {name!r}.")
    if file and not Path(file).is_file():
        raise DataError(f"Expected a file of weights after timm:{name}@, got {file}, which is not there.")
    try:
        model = timm.create_model(name, pretrained=not file, num_classes=0)
        if file:
            _load(model, file)
    except Exception as error:  # Reading weights or reaching the hub fails in many ways, none of them documented.
        raise DataError(f"Expected weights of the timm model {name!r}, got {one_line(error)}") from error
    data: Any = timm.data
    return encoder_of(model, data.create_transform(**data.resolve_model_data_config(model), is_training=False))


def _load(model: Any, file: str) -> None:
    """Load weights, which may have a classifier of any size, for a model that has none.

    Raises:
        KeyError: the file lacks weights of the model.
    """
    from timm.models import load_state_dict

    missing = model.load_state_dict(load_state_dict(file, weights_only=True), strict=False).missing_keys
    if missing:
        raise KeyError(f"{len(missing)} weights are not in the file, such as {missing[0]}")


def encoder_of(model: Any, transform: Any) -> Encoder:
    """Return the encoder of a timm model without classifier.

    Args:
        model: maps float32 (n, 3, H, W) to (n, D).
        transform: maps an image to float32 (3, H, W).
    """
    model = model.eval().to(device())

    @torch.no_grad()
    def encode(images: Sequence[Image.Image]) -> Tensor:
        parts = (torch.stack([transform(image) for image in some]) for some in batched(images, BATCH))
        return torch.cat([model(part.to(device())).float().cpu() for part in parts])

    return Encoder(encode)
