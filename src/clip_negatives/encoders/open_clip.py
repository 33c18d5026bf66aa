"""Images and texts through the towers of an open_clip model; imports open_clip because that is what it encodes with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clip_negatives.atomic import digest
from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import DataError, UnknownNameError

BATCH = 64
"""Samples that go through the model together."""

MODELS = Path(__file__).parent.parent / "integrations" / "open_clip" / "models"
"""Our own model configurations, known to open_clip by file name."""


def images(argument: str) -> Encoder:
    """Return the image tower of ``MODEL/PRETRAINED`` or ``MODEL/CHECKPOINT-FILE``."""
    name, model, transform, _ = _load(argument)

    def encode(pictures: Sequence[Image.Image]) -> Tensor:
        parts = [torch.stack([transform(picture) for picture in some]) for some in _batches(pictures)]
        return _run(model.encode_image, parts)

    return Encoder(name, encode)


def texts(argument: str) -> Encoder:
    """Return the text tower of ``MODEL/PRETRAINED`` or ``MODEL/CHECKPOINT-FILE``."""
    name, model, _, tokenizer = _load(argument)

    def encode(lines: Sequence[str]) -> Tensor:
        return _run(model.encode_text, [tokenizer(list(some)) for some in _batches(lines)])

    return Encoder(name, encode)


@functools.lru_cache(maxsize=1)
def _load(argument: str) -> tuple[str, Any, Any, Any]:
    """Return name, model, image transform and tokenizer; both towers of one model are loaded once."""
    import open_clip

    open_clip.add_model_config(MODELS)
    model_name, slash, weights = argument.partition("/")
    if model_name not in open_clip.list_models():
        raise UnknownNameError.of("open_clip model", model_name, open_clip.list_models())
    file = Path(weights)
    known = open_clip.list_pretrained_tags_by_model(model_name)
    if not slash or not (file.is_file() or weights in known):
        raise DataError(
            f"Expected open_clip:{model_name}/WEIGHTS with a checkpoint file or one of {', '.join(known) or 'no known tags'}, "
            f"got {weights!r}."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, _, transform = open_clip.create_model_and_transforms(model_name, pretrained=weights, device=device)
    except (OSError, RuntimeError) as error:
        raise DataError(f"Expected weights of {model_name}, got {weights}: {str(error).strip().splitlines()[0]}") from error
    label = digest(file)[:16] if file.is_file() else weights
    return f"open_clip:{model_name}/{label}", model.eval(), transform, open_clip.get_tokenizer(model_name)


def _batches(samples: Sequence[Any]) -> list[Sequence[Any]]:
    return [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]


@torch.inference_mode()
def _run(tower: Any, parts: Sequence[Tensor]) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.cat([tower(part.to(device), normalize=True).float().cpu() for part in parts])
