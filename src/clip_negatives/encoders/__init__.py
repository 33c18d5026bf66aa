"""Encoders: what turns images and texts into the frozen features that are clustered.

Named by a spec. Two need no weights: ``pixels`` and ``tfidf``. Two come with the extra ``[encoders]``: ``efficientnet-lite0``
and ``minilm``. ``timm:NAME`` and ``transformers:FOLDER`` take any model of those libraries, ``sentence_transformers:FOLDER``
another, and ``open_clip:MODEL/PRETRAINED`` both towers of a CLIP model.
"""

from __future__ import annotations

import importlib
from typing import Literal

from clip_negatives.encoders.encoder import Encoder
from clip_negatives.errors import OptionError, UnknownNameError
from clip_negatives.options import bind_options, options_of, parse_spec

__all__ = ["Encoder", "image_encoder", "text_encoder"]

_PLAIN = {
    "image": {"pixels": "pixels:pixels", "efficientnet-lite0": "timm:efficientnet_lite0"},
    "text": {"tfidf": "tfidf:tfidf", "minilm": "transformers:minilm"},
}
"""Module and function by name; the function's keyword arguments are the options."""

_NAMED = {
    "image": {"timm": "timm:from_name", "open_clip": "open_clip:images"},
    "text": {
        "transformers": "transformers:from_folder",
        "sentence_transformers": "sentence_transformers:from_folder",
        "open_clip": "open_clip:texts",
    },
}
"""The same for encoders that take what stands after the colon as the name of a model."""


def image_encoder(spec: str) -> Encoder:
    """Return the image encoder that `spec` names.

    Raises:
        UnknownNameError: there is no such encoder.
        OptionError: it has no such option, or lacks a model.
        DataError: its model cannot be loaded.
    """
    return _encoder("image", spec)


def text_encoder(spec: str) -> Encoder:
    """Return the text encoder that `spec` names; raises as `image_encoder`."""
    return _encoder("text", spec)


def _encoder(kind: Literal["image", "text"], spec: str) -> Encoder:
    name, _, argument = spec.partition(":")
    if name in _NAMED[kind]:
        if not argument:
            raise OptionError(f"Expected a model after {name!r}, such as {name}:MODEL, got {spec!r}.")
        named: Encoder = _function(_NAMED[kind][name])(argument)
        return named
    if name not in _PLAIN[kind]:
        raise UnknownNameError.of(f"{kind} encoder", name, [*_PLAIN[kind], *_NAMED[kind]])
    function = _function(_PLAIN[kind][name])
    plain: Encoder = function(**bind_options(name, options_of(function), parse_spec(spec)[1]))
    return plain


def _function(where: str):  # type: ignore[no-untyped-def]
    module, function = where.split(":")
    return getattr(importlib.import_module(f"clip_negatives.encoders.{module}"), function)
