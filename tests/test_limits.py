"""Limits are those of the package, or of the environment."""

from __future__ import annotations

import pytest
from PIL import Image

from clip_negatives.errors import OptionError
from clip_negatives.limits import DEFAULTS, VARIABLE, limit


def test_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit("pixels") == DEFAULTS["pixels"] == Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv(VARIABLE, " pixels=7, letters=3,")
    assert (limit("pixels"), limit("letters"), limit("header_bytes")) == (7, 3, DEFAULTS["header_bytes"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pixel=7", "Did you mean 'pixels'"),
        ("pixels", "over 0 for pixels"),
        ("pixels=0", "got '0'"),
        ("letters=1e9", "got '1e9'"),
        (f"letters={'9' * 5000}", "whole number"),
    ],
)
def test_bad_environment_is_one_sentence(monkeypatch: pytest.MonkeyPatch, given: str, words: str) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(OptionError, match=words):
        limit("pixels")
