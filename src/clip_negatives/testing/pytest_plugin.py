"""pytest fixtures for tests of plugins and of training; pytest finds them wherever this package is installed.

Each fixture imports on use, so that other test suites of the environment do not become slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from clip_negatives.interfaces import Clusters

LISTINGS = 192  # rows of the csv of the fixture `catalogue`


class TinyClip(NamedTuple):
    """An open_clip model with random weights, small enough for tests."""

    model: Any  # called with images and tokens, returns a mapping with the features and logit_scale
    transform: Any  # turns a PIL image into the model's input
    tokenizer: Any  # turns n texts into tokens, shape (n, 20)


@pytest.fixture
def blobs() -> Clusters:
    """Return `clip_negatives.testing.make_blobs`: clusters of 240 samples."""
    from clip_negatives.testing import make_blobs

    return make_blobs()


@pytest.fixture
def tiny_clip() -> TinyClip:
    """Return the default model of comparisons, with the same random weights every time; nothing is downloaded."""
    from clip_negatives.integrations.open_clip.tiny import tiny_model

    return TinyClip(*tiny_model(seed=0))


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a csv in open_clip's format with 192 listings of the emoji catalogue; the pictures are in a folder beside it."""
    from clip_negatives.catalogue import export

    folder = export(tmp_path_factory.mktemp("catalogue") / "test", split="test", format="csv")
    file = folder / "catalogue.csv"
    file.write_text("".join((folder / "test.csv").read_text().splitlines(keepends=True)[: LISTINGS + 1]))
    return file
