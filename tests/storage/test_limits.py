"""Limits are the defaults of the package, unless the environment changes them."""

from __future__ import annotations

import pytest
from PIL import Image

from clip_negatives.errors import OptionError
from clip_negatives.storage.limits import DEFAULTS, VARIABLE, limit


def test_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit("pixels") == DEFAULTS["pixels"] == Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv(VARIABLE, " pixels=7, characters=3,")
    assert (limit("pixels"), limit("characters"), limit("header_bytes")) == (7, 3, DEFAULTS["header_bytes"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pixel=7", "Did you mean 'pixels'"),
        ("pixels", "above 0 for pixels"),
        ("pixels=0", "got '0'"),
        ("characters=1e9", "got '1e9'"),
        (f"characters={'9' * 5000}", "whole number"),
    ],
)
def test_invalid_environment_variable(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(OptionError, match=message):
        limit("pixels")
