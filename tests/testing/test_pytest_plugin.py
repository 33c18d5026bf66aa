"""The pytest fixtures of the package."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from clip_negatives import Clusters
from clip_negatives.host import registry
from clip_negatives.testing.pytest_plugin import LISTINGS, TinyClip


def test_blobs_serve_every_weighting(blobs: Clusters) -> None:
    assert blobs.n_samples == 240
    assert min(int(blobs.image.sizes().min()), int(blobs.text.sizes().min())) > 0
    within = blobs.image_similarity.diagonal()
    assert torch.allclose(within, torch.ones_like(within))
    for item in registry.default_registry().items("loss_weighting"):
        registry.create("loss_weighting", item.name)(blobs)


@pytest.mark.keeps_global_rng
def test_tiny_clip_encodes_the_catalogue(tiny_clip: TinyClip, catalogue: Path) -> None:
    rows = list(csv.DictReader(catalogue.open(), delimiter="\t"))
    assert len(rows) == LISTINGS
    images = torch.stack([tiny_clip.transform(Image.open(row["filepath"]).convert("RGB")) for row in rows[:4]])
    output = tiny_clip.model(images, tiny_clip.tokenizer([row["title"] for row in rows[:4]]))
    assert output["image_features"].shape == output["text_features"].shape == (4, 128)


def test_tiny_clip_is_the_same_every_time(tiny_clip: TinyClip) -> None:
    from clip_negatives.integrations.open_clip.tiny import tiny_model

    again, _, _ = tiny_model(seed=0)
    assert all(torch.equal(left, right) for left, right in zip(tiny_clip.model.parameters(), again.parameters(), strict=True))
