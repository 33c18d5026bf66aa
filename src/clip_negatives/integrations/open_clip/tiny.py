"""The small model that ships with the package; it trains on two cores."""

from __future__ import annotations

from typing import Any

import open_clip
import torch

from clip_negatives.encoders.open_clip import MODELS


def tiny_model(*, seed: int) -> tuple[Any, Any, Any]:
    """Return model, image transform and tokenizer, with random weights of a seed; the global generator does not change."""
    name = "clip-negatives-tiny"
    open_clip.add_model_config(MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _, transform = open_clip.create_model_and_transforms(name, output_dict=True)
    return model, transform, open_clip.get_tokenizer(name)
