"""Cases of a whole training step, and of k-means."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import test_kmeans_benchmark as kmeans
import test_training_step_benchmark as training
import torch

from gpu.cases import Case
from gpu.loss_cases import WARMUPS, paired_seconds, seconds_of


def training_cases() -> Iterator[Case]:
    """Yield a training step with each loss."""
    for name in training.LOSSES:
        yield Case("training_step", training.GROUP, name, lambda name=name: _training_figures(name), 60.0)


def kmeans_cases() -> Iterator[Case]:
    """Yield k-means for each device and precision, the GPU first."""
    for device, precision in reversed(kmeans.RUNS):
        values = (device, precision)
        yield Case("kmeans", kmeans.GROUP, f"{device} {precision}", lambda values=values: _kmeans_figures(*values), 60.0)


def _training_figures(name: str) -> dict[str, Any]:
    step, baseline = (training.make_step(training.LOSSES[loss]()) for loss in (name, "open_clip"))
    for _ in range(WARMUPS):
        step()
        baseline()
    return {"name": name, "model": training.MODEL, "batch_size": training.BATCH, **paired_seconds(step, baseline)}


@functools.cache
def _features() -> torch.Tensor:
    return kmeans.blobs()


def _kmeans_figures(device: str, precision: str) -> dict[str, Any]:
    fit: Callable[..., Any] = kmeans.clusterer(device, precision).fit
    results: list[Any] = []
    rounds = [seconds_of(lambda: results.append(fit(_features(), generator=torch.Generator()))) for _ in range(2)]
    similarity = kmeans.mean_similarity(_features(), results[-1])
    sizes = {"n": kmeans.N, "d": kmeans.D, "k": kmeans.K}
    named = {"name": f"{device} {precision}", "device": device, "precision": precision}
    return {**named, **sizes, "mean_similarity": similarity, "seconds": min(rounds), "rounds": rounds}
