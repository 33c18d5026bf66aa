"""Encoders: what turns images and texts into the frozen features that are clustered.

Named by a spec. Two need no weights: ``pixels`` and ``tfidf``. Two come with the extra ``[encoders]``:
``efficientnet-lite0`` and ``minilm``. ``timm:NAME`` or ``timm:NAME@FILE``, ``transformers:FOLDER`` and
``sentence_transformers:FOLDER`` take any model of those libraries, ``open_clip:MODEL/PRETRAINED`` or
``open_clip:MODEL/FILE`` both towers of a CLIP model, ``open_clip:local-dir:FOLDER`` and ``open_clip:hf-hub:NAME`` those of a
model with its own weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from clip_negatives.atomic import digest
from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import OptionError, UnknownNameError
from clip_negatives.options import bind_options, options_of, parse_spec

__all__ = ["Encoder", "encoder_name", "image_encoder", "text_encoder"]

Modality = Literal["image", "text"]

_PLAIN = {
    "image": {"pixels": "pixels:pixels", "efficientnet-lite0": "efficientnet_lite0:efficientnet_lite0"},
    "text": {"tfidf": "tfidf:tfidf", "minilm": "transformers:minilm"},
}
"""Module and function by name; the function's keyword arguments are the options."""

_NAMED = {
    "image": {"timm": ("timm:from_name", "@"), "open_clip": ("open_clip:images", "/")},
    "text": {
        "transformers": ("transformers:from_folder", ""),
        "sentence_transformers": ("sentence_transformers:from_folder", ""),
        "open_clip": ("open_clip:texts", "/"),
    },
}
"""The same for encoders that take the name of a model, and what stands between it and a file or name of weights."""


def image_encoder(spec: str) -> Encoder:
    """Return the image encoder that `spec` names.

    Raises:
        UnknownNameError: there is no such encoder, or its library has no such model.
        OptionError: it has no such option, or lacks a model.
        DataError: its weights cannot be loaded.
    """
    return _encoder("image", spec)


def text_encoder(spec: str) -> Encoder:
    """Return the text encoder that `spec` names; raises as `image_encoder`."""
    return _encoder("text", spec)


def encoder_name(modality: Modality, spec: str) -> str:
    """Return the name of the encoder, without loading it: every option, and a digest in the place of a file of weights.

    Raises:
        UnknownNameError: there is no such encoder.
        OptionError: it has no such option, or lacks a model.

    Examples:
        >>> encoder_name("image", "pixels:size=8")
        'pixels:size=8,dim=64'
    """
    name, _, argument = spec.partition(":")
    if name in _NAMED[modality]:
        if not argument:
            raise OptionError(f"Expected a model after {name!r}, such as {name}:MODEL, got {spec!r}.")
        if name == "open_clip" and argument.startswith("local-dir:"):
            return f"{name}:local-dir:{_label(Path(argument.removeprefix('local-dir:')))}"
        if name == "open_clip" and argument.startswith("hf-hub:"):
            return spec
        mark = _NAMED[modality][name][1]
        model, _, weights = argument.partition(mark) if mark else ("", "", argument)
        return f"{name}:{model}{mark}{_label(Path(weights))}" if weights else f"{name}:{model}"
    if name not in _PLAIN[modality]:
        raise UnknownNameError.of(f"{modality} encoder", name, [*_PLAIN[modality], *_NAMED[modality]])
    function = _function(_PLAIN[modality][name])
    options = options_of(function)
    given = bind_options(name, options, parse_spec(spec)[1])
    every = ",".join(f"{option.name}={given.get(option.name, option.default)}" for option in options)
    return f"{name}:{every}" if every else name


def _encoder(modality: Modality, spec: str) -> Encoder:
    full_name = encoder_name(modality, spec)
    name, _, argument = spec.partition(":")
    # Models draw weights at random before they load their own; the caller's random numbers stay what they were.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if name in _NAMED[modality]:
            built: Encoder = _function(_NAMED[modality][name][0])(argument)
        else:
            function = _function(_PLAIN[modality][name])
            built = function(**bind_options(name, options_of(function), parse_spec(spec)[1]))
    return dataclasses.replace(built, name=full_name)


def _function(where: str) -> Callable[..., Any]:
    module, name = where.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f"clip_negatives.encoders.{module}"), name)
    return function


def _label(weights: Path) -> str:
    """Return a digest of a file or of the files in a folder; what is neither names weights by itself."""
    if weights.is_file():
        return digest(weights)[:16]
    if weights.is_dir():
        files = sorted(item for item in weights.rglob("*") if item.is_file())
        listing = "".join(f"{item.relative_to(weights)} {digest(item)}\n" for item in files)
        return hashlib.sha256(listing.encode()).hexdigest()[:16]
    return str(weights)
