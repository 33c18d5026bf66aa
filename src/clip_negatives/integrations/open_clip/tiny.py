"""The small model that ships with the package, freshly made."""

from __future__ import annotations

from typing import Any

import torch

from clip_negatives.encoders.open_clip import MODELS

NAME = "clip-negatives-tiny"
"""open_clip's name of a model small enough for two cores."""


def tiny_model(*, seed: int) -> tuple[Any, Any, Any]:
    """Return model, image transform and tokenizer, with the random weights of a seed; the global generator is kept."""
    import open_clip

    open_clip.add_model_config(MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _, transform = open_clip.create_model_and_transforms(NAME, output_dict=True)
    return model, transform, open_clip.get_tokenizer(NAME)
