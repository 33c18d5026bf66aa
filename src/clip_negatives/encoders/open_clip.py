"""Images and texts through the towers of an open_clip model; imports open_clip because that is what it encodes with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clip_negatives.encoders.encoder import Encoder, batched, device, one_line
from clip_negatives.encoders.words import ShortWords
from clip_negatives.errors import DataError, UnknownNameError

BATCH = 64
"""Samples that go through the model together."""

LETTERS = 10_000
"""Of a text that is tokenized: models look at far fewer, and the time of a word without an end grows with its square."""

MODELS = Path(__file__).parent.parent / "integrations" / "open_clip" / "models"
"""Our own model configurations, known to open_clip by file name."""


SCHEMES = ("local-dir:", "hf-hub:")
"""How open_clip names a model that brings its own configuration and weights."""


def images(argument: str) -> Encoder:
    """Return the image tower of ``MODEL/PRETRAINED``, ``MODEL/CHECKPOINT-FILE``, ``local-dir:FOLDER`` or ``hf-hub:NAME``."""
    return image_tower(*_parts(argument))


def texts(argument: str) -> Encoder:
    """Return the text tower; takes what `images` takes."""
    return text_tower(*_parts(argument))


def image_tower(model: str, weights: str) -> Encoder:
    """Return the image tower of a model as open_clip names it.

    Args:
        model: what open_clip's ``--model`` takes.
        weights: checkpoint file or open_clip's tag of weights; "" takes the model's own, where it brings some.

    Raises:
        UnknownNameError: open_clip has no such model.
        DataError: the weights are missing or cannot be loaded.
    """
    net, transform, _ = _load(*_checked(model, weights))

    def encode(pictures: Sequence[Image.Image]) -> Tensor:
        return _run(net.encode_image, pictures, lambda some: torch.stack([transform(picture) for picture in some]))

    return Encoder(encode)


def text_tower(model: str, weights: str) -> Encoder:
    """Return the text tower of a model; see `image_tower`."""
    net, _, tokenizer = _load(*_checked(model, weights))

    def encode(lines: Sequence[str]) -> Tensor:
        return _run(net.encode_text, lines, lambda some: tokenizer([line[:LETTERS] for line in some]))

    return Encoder(encode)


def _parts(argument: str) -> tuple[str, str]:
    if argument.startswith(SCHEMES):
        return argument, ""
    model, _, weights = argument.partition("/")
    return model, weights


def _checked(model: str, weights: str) -> tuple[str, str, int]:
    """Return the model, its weights, and when those were changed, where they are a file: a new one is loaded anew."""
    import open_clip

    open_clip.add_model_config(MODELS)
    if model.startswith(SCHEMES[0]) and not (Path(model.removeprefix(SCHEMES[0])) / "open_clip_config.json").is_file():
        raise DataError(f"Expected local-dir:FOLDER with an open_clip_config.json in the folder, got {model!r}.")
    if not model.startswith(SCHEMES) and model not in open_clip.list_models():
        near = get_close_matches(model, open_clip.list_models(), n=3)
        hint = f"such as {', '.join(near)}" if near else "see open_clip.list_models()"
        raise UnknownNameError(f"Expected the name of an open_clip model ({hint}), got {model!r}.")
    if Path(weights).is_file():
        return model, weights, Path(weights).stat().st_mtime_ns
    if not weights and model.startswith(SCHEMES):
        files = Path(model.removeprefix(SCHEMES[0])).iterdir() if model.startswith(SCHEMES[0]) else ()
        return model, weights, max((file.stat().st_mtime_ns for file in files), default=0)
    known = open_clip.list_pretrained_tags_by_model(model)
    if weights not in known:
        tags = f"one of {', '.join(known)}" if known else "there are no known tags"
        raise DataError(f"Expected open_clip:{model}/WEIGHTS with a checkpoint file or a tag ({tags}), got {weights!r}.")
    return model, weights, 0


@functools.lru_cache(maxsize=1)
def _load(name: str, weights: str, changed: int) -> tuple[Any, Any, Any]:
    """Return model, image transform and tokenizer; the two towers of one model are loaded once."""
    import open_clip

    stored = Path(weights).is_file()
    # A checkpoint of --siglip has a logit bias, for which a model needs room; others get 0. No encoding uses it.
    bias = {"init_logit_bias": 0.0} if stored else {}
    own = name.startswith(SCHEMES)
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name,
            pretrained=None if own else weights,
            device=device(),
            require_pretrained=not stored,  # else a folder without weights is a model of random ones
            **bias,
        )
        tokenizer = ShortWords(open_clip.get_tokenizer(name))
        if own and stored:  # open_clip overlooks weights that are named beside those that a model brings.
            open_clip.load_checkpoint(model, weights, device=device())
    except Exception as error:  # Reading a checkpoint or reaching the hub fails in many ways, none of them documented.
        raise DataError(f"Expected weights of {name}, got {weights or 'its own'}: {one_line(error)}") from error
    return model.eval(), transform, tokenizer


@torch.no_grad()
def _run(tower: Any, samples: Sequence[Any], prepared: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    parts = [tower(prepared(some).to(device()), normalize=True).float().cpu() for some in batched(samples, BATCH)]
    return torch.cat(parts)
