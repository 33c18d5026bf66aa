"""The small model that ships with the package; two CPU cores are enough to train it."""

from __future__ import annotations

from typing import Any

import open_clip
import torch

from clip_negatives.encoders.open_clip import MODELS


def tiny_model(*, seed: int) -> tuple[Any, Any, Any]:
    """Return the model with random weights from `seed`, its image transform and its tokenizer.

    The state of the global random generator does not change.
    """
    name = "clip-negatives-tiny"
    open_clip.add_model_config(MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _, transform = open_clip.create_model_and_transforms(name, output_dict=True)
    return model, transform, open_clip.get_tokenizer(name)
