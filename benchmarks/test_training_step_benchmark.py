"""A whole training step with our weighted loss and with open_clip's: ViT-B-32 on a GPU, else a small model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from losses import DEVICE, weights
from open_clip import ClipLoss

from clip_negatives.encoders.open_clip import MODELS
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples

GPU = DEVICE.type == "cuda"
FULL = os.environ.get("BENCHMARK_FULL") == "1"
MODEL, BATCH = ("ViT-B-32", 1024 if FULL else 64) if GPU else ("clip-negatives-tiny", 256 if FULL else 32)
GROUP = f"training step, {MODEL}, {BATCH} pairs"


def make_step(loss: Callable[..., Any]) -> Callable[[], None]:
    """Return a step of the model on random pictures and words, bfloat16 by autocast on a GPU."""
    open_clip.add_model_config(MODELS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(MODEL).to(DEVICE).train()
        size = model.visual.image_size if isinstance(model.visual.image_size, int) else model.visual.image_size[0]
        images = torch.randn(BATCH, 3, size, size, device=DEVICE)
        texts = torch.randint(1000, (BATCH, model.context_length), device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            features = model(images, texts)
            value = loss(features[0], features[1], features[2])
        value.backward()
        optimizer.step()
        if GPU:
            torch.cuda.synchronize()

    return step


def ours() -> Callable[..., Any]:
    """Return our loss with normalized log-weights of 1000 clusters.

    On a GPU it uses the fused kernels, also where "auto" does not.
    """
    samples, backend = BatchSamples(ids=torch.arange(BATCH, device=DEVICE)), "triton" if GPU else "auto"
    return NegativesClipLoss(terms=weights("normalized", BATCH, 1000), batch_samples=lambda: samples, backend=backend)


LOSSES: dict[str, Callable[[], Callable[..., Any]]] = {"open_clip": ClipLoss, "clip-negatives": ours}


@pytest.mark.parametrize("name", LOSSES)
def test_training_step(benchmark: Any, name: str) -> None:
    """Measure one of the two; the generated page has their ratio."""
    benchmark.group = GROUP
    benchmark.pedantic(make_step(LOSSES[name]()), rounds=10, warmup_rounds=2)
    benchmark.extra_info.update(name=name, model=MODEL, batch_size=BATCH)
