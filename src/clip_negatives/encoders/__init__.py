"""Encoders: models that turn images and texts into the features that are clustered.

A text, the spec, names an encoder. ``pixels``, ``tfidf`` and ``hashing`` need no weights; ``efficientnet-lite0`` and ``minilm``
come with the extra ``[encoders]``. ``timm:NAME``, ``timm:NAME@FILE``, ``transformers:FOLDER`` and
``sentence_transformers:FOLDER`` use any model of these libraries. ``open_clip:MODEL/PRETRAINED``, ``open_clip:MODEL/FILE``,
``open_clip:local-dir:FOLDER`` and ``open_clip:hf-hub:NAME`` use the image tower or the text tower of a CLIP model.
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
from clip_negatives.host.options import bind_options, options_of, parse_spec
from clip_negatives.storage.digests import weights_digest

__all__ = ["Encoder", "encoder_name", "image_encoder", "text_encoder"]

Modality = Literal["image", "text"]

# Module and function of each encoder. Options of an encoder without a model are the keyword arguments of its function.
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
    if name in _SEPARATORS:
        if not argument:
            raise OptionError(f"The encoder {name!r} needs a model. Write {name}:MODEL.")
        if name == "open_clip" and argument.startswith("hf-hub:"):
            return spec
        separator = ":" if name == "open_clip" and argument.startswith("local-dir:") else _SEPARATORS[name]
        model, _, weights = argument.partition(separator) if separator else ("", "", argument)
        return f"{name}:{model}{separator}{_short_digest(weights)}" if weights else f"{name}:{model}"
    options = options_of(resolve_name(_ENCODERS[modality][name]))
    values = bind_options(name, options, parse_spec(spec)[1])
    listed = ",".join(f"{option.name}={values.get(option.name, option.default)}" for option in options)
    return f"{name}:{listed}" if listed else name


def _encoder(modality: Modality, spec: str) -> Encoder:
    full_name = encoder_name(modality, spec)
    name, _, argument = spec.partition(":")
    function: Callable[..., Encoder] = resolve_name(_ENCODERS[modality][name])
    # Models draw random weights before they load weights: the global generators must not change.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if name in _SEPARATORS:
            encoder = function(argument)
        else:
            encoder = function(**bind_options(name, options_of(function), parse_spec(spec)[1]))
    return dataclasses.replace(encoder, name=full_name)


def _short_digest(weights: str) -> str:
    """Return a digest of a file or folder; any other string (the name of published weights) is returned as it is."""
    return weights_digest(weights)[:16] if Path(weights).exists() else weights
