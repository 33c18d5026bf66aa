"""Encoders: models that turn images and texts into the features that are clustered.

A text, the spec, names an encoder. ``pixels``, ``tfidf`` and ``hashing`` need no weights; ``efficientnet-lite0`` and ``minilm``
come with the extra ``[encoders]``. ``timm:NAME``, ``timm:NAME@FILE``, ``transformers:FOLDER`` and
``sentence_transformers:FOLDER`` use any model of these libraries. ``open_clip:MODEL/PRETRAINED``, ``open_clip:MODEL/FILE``,
``open_clip:local-dir:FOLDER`` and ``open_clip:hf-hub:NAME`` use the image tower or the text tower of a CLIP model.

``,precision=amp`` or ``,precision=amp_bf16`` at the end of the spec of a model computes by `torch.autocast`, as open_clip's
``--precision`` of the same name does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

import torch

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import OptionError, UnknownNameError
from clip_negatives.host.options import Option, bind_options, options_of, parse_spec
from clip_negatives.storage.digests import weights_digest

__all__ = ["Encoder", "encoder_name", "image_encoder", "text_encoder"]

Modality = Literal["image", "text"]

# Module and function of each encoder. Options are the keyword arguments of the function; a model is its first argument.
_ENCODERS = {
    "image": {
        "pixels": "clip_negatives.encoders.pixels:pixels",
        "efficientnet-lite0": "clip_negatives.encoders.timm:efficientnet_lite0",
        "timm": "clip_negatives.encoders.timm:from_name",
        "open_clip": "clip_negatives.encoders.open_clip:image_tower",
    },
    "text": {
        "tfidf": "clip_negatives.encoders.tfidf:tfidf",
        "hashing": "clip_negatives.encoders.hashing:hashing",
        "minilm": "clip_negatives.encoders.transformers:minilm",
        "transformers": "clip_negatives.encoders.transformers:from_folder",
        "sentence_transformers": "clip_negatives.encoders.transformers:from_sentence_transformers",
        "open_clip": "clip_negatives.encoders.open_clip:text_tower",
    },
}

# Separator between model and weights in the specs that name a model; "" if the spec names only a folder of weights.
_SEPARATORS = {"timm": "@", "open_clip": "/", "transformers": "", "sentence_transformers": ""}


def image_encoder(spec: str) -> Encoder:
    """Return the image encoder of a spec; DataError if its weights cannot be loaded."""
    return _encoder("image", spec)


def text_encoder(spec: str) -> Encoder:
    """Return the text encoder of a spec; DataError if its weights cannot be loaded."""
    return _encoder("text", spec)


def encoder_name(modality: Modality, spec: str) -> str:
    """Return the full name of an encoder: all options, and a digest for a weights file. The encoder is not loaded."""
    if not isinstance(spec, str):
        raise OptionError(f"Expected the text of an {modality} encoder, such as NAME:MODEL, got {spec!r}.")
    name, _, argument = spec.partition(":")
    if name not in _ENCODERS[modality]:
        raise UnknownNameError.of(f"{modality} encoder", name, _ENCODERS[modality])
    model, values = _model_and_options(name, argument) if name in _SEPARATORS else ("", parse_spec(spec)[1])
    options = _options(modality, name)
    bound = bind_options(name, options, values)
    chosen = {option.name: bound.get(option.name, option.default) for option in options}
    # Names without a precision are those of features that were encoded before encoders had one.
    listed = [f"{key}={value}" for key, value in chosen.items() if (key, value) != ("precision", "fp32")]
    if name in _SEPARATORS:
        return ",".join([_model_name(name, model), *listed])
    return f"{name}:{','.join(listed)}" if listed else name


def _model_and_options(name: str, argument: str) -> tuple[str, dict[str, str]]:
    """Split the rest of the spec of a model into the model and its options."""
    model, separator, precision = argument.rpartition(",precision=")
    model, values = (model, {"precision": precision}) if separator else (argument, {})
    if not model:
        raise OptionError(f"The encoder {name!r} needs a model. Write {name}:MODEL.")
    return model, values


def _model_name(name: str, model: str) -> str:
    """Return a spec of a model with a digest of its weights file or folder instead of the path."""
    if name == "open_clip" and model.startswith("hf-hub:"):
        return f"{name}:{model}"
    separator = ":" if name == "open_clip" and model.startswith("local-dir:") else _SEPARATORS[name]
    model, _, weights = model.partition(separator) if separator else ("", "", model)
    return f"{name}:{model}{separator}{_short_digest(weights)}" if weights else f"{name}:{model}"


def _options(modality: Modality, name: str) -> tuple[Option, ...]:
    """Return the options of an encoder; the model of a spec is no option."""
    return options_of(resolve_name(_ENCODERS[modality][name]), skip=int(name in _SEPARATORS))


def _encoder(modality: Modality, spec: str) -> Encoder:
    full_name = encoder_name(modality, spec)
    name, _, argument = spec.partition(":")
    function: Callable[..., Encoder] = resolve_name(_ENCODERS[modality][name])
    model, values = _model_and_options(name, argument) if name in _SEPARATORS else ("", parse_spec(spec)[1])
    bound = bind_options(name, _options(modality, name), values)
    # Models draw random weights before they load weights: the global generators must not change.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        encoder = function(model, **bound) if name in _SEPARATORS else function(**bound)
    return dataclasses.replace(encoder, name=full_name)


def _short_digest(weights: str) -> str:
    """Return a digest of a file or folder; any other string (the name of published weights) is returned as it is."""
    return weights_digest(weights)[:16] if Path(weights).exists() else weights
