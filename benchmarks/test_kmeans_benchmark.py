"""k-means of ours, on the CPU and on a GPU if there is one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.interfaces import Clustering
from clip_negatives_plugins.kmeans.clusterer import KMeans

FULL = os.environ.get("BENCHMARK_FULL") == "1"
GPU = torch.cuda.is_available()
N, D, K = (1_000_000, 512, 1000) if FULL and GPU else (100_000, 128, 256) if FULL else (5_000, 32, 32)
DEVICES = ["cpu", "cuda"] if GPU else ["cpu"]
PRECISIONS = {"cpu": ["float32"], "cuda": ["float32", "tf32", "bfloat16"]}
RUNS = [(device, precision) for device in DEVICES for precision in PRECISIONS[device]]
GROUP = f"k-means, {N} x {D}, {K} clusters, 10 iterations"


def blobs() -> torch.Tensor:
    """Return features in blobs."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(K, D, generator=generator)
    return F.normalize(centres[torch.randint(K, (N,), generator=generator)] + torch.randn(N, D, generator=generator), dim=1)


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    """Return the features of all benchmarks of k-means."""
    return blobs()


def clusterer(device: str, precision: str) -> KMeans:
    """Return ten iterations of k-means."""
    return KMeans(n_clusters=K, n_iter=10, seed=0, device=device, precision=precision)


def mean_similarity(features: torch.Tensor, clustering: Clustering) -> float:
    """Return the mean similarity of the samples to their centroids."""
    return float((features * clustering.centroids[clustering.labels]).sum(1).mean())


@pytest.mark.parametrize(("device", "precision"), RUNS)
def test_kmeans(benchmark: Any, features: torch.Tensor, device: str, precision: str) -> None:
    """Measure ten iterations and the assignment of all samples."""
    benchmark.group = GROUP
    fit = clusterer(device, precision).fit
    clustering = benchmark.pedantic(fit, (features,), {"generator": torch.Generator()}, rounds=2 if FULL else 1)
    similarity = mean_similarity(features, clustering)
    benchmark.extra_info.update(device=device, precision=precision, n=N, d=D, k=K, mean_similarity=similarity)
