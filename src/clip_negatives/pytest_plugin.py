"""Fixtures for tests of plugins and of trainings: pytest finds them where this package is installed.

Nothing is imported until a fixture is used, so other suites of the same environment pay nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from clip_negatives.interfaces import Clusters

LISTINGS = 192
"""Rows of the csv of the fixture `catalogue`."""


class TinyClip(NamedTuple):
    """Hold an open_clip model small enough for tests, with random weights, and what goes with it.

    Attributes:
        model: called with images and tokens, it returns features and logit_scale as a mapping.
        transform: turns a PIL image into what the model takes.
        tokenizer: turns n texts into tokens, shape (n, 20).
    """

    model: Any
    transform: Any
    tokenizer: Any


@pytest.fixture
def blobs() -> Clusters:
    """Return clusters of 240 samples in blobs, see `clip_negatives.testing.make_blobs`."""
    from clip_negatives.testing import make_blobs

    return make_blobs()


@pytest.fixture
def tiny_clip() -> TinyClip:
    """Return the model that comparisons train by default, the same random weights every time; no weights are fetched."""
    from clip_negatives.integrations.open_clip.tiny import tiny_model

    return TinyClip(*tiny_model(seed=0))


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a csv, as open_clip reads it, of 192 listings of the emoji catalogue, beside a folder of their pictures."""
    from clip_negatives.catalogue import export

    folder = export(tmp_path_factory.mktemp("catalogue") / "test", split="test", format="csv")
    file = folder / "catalogue.csv"
    file.write_text("".join((folder / "test.csv").read_text().splitlines(keepends=True)[: LISTINGS + 1]))
    return file
