"""Indices per second of the samplers, and the additional memory of an epoch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FULL = os.environ.get("BENCHMARK_FULL") == "1"
SIZES = [10**6, 10**8] if FULL else [10**5]

PROGRAM = """
import sys, time, torch
sys.path.insert(0, {folder!r})
from run import forget_peak, memory_mib
from clip_negatives import Method
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.clustering.similarity import centroid_similarity
n, k, batch = int(sys.argv[2]), 1000, 4096
generator = torch.Generator().manual_seed(0)
def side():
    centroids = torch.nn.functional.normalize(torch.randn(k, 64, generator=generator), dim=1)
    return Clustering(torch.randint(k, (n,), generator=generator), centroids), centroid_similarity(centroids)
(image, a), (text, b) = side(), side()
context = SamplingContext.of(Clusters(image, text, a, b), batch, seed=0)
forget_peak()
before, start = memory_mib(), time.perf_counter()
sampler = Method(sys.argv[1]).create_sampler(context)
count = sum(len(batch) for batch in sampler)
print(count / (time.perf_counter() - start), (memory_mib() - before) * 2**20 / n)
"""


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("sampler", ["in_batch", "cluster_similarity"])
def test_sampler(benchmark: Any, request: Any, sampler: str, n: int) -> None:
    """Measure one epoch in a process of its own."""
    benchmark.group = f"sampler, {n} samples, 1000 clusters, steps of 4096"
    command = [sys.executable, "-c", PROGRAM.format(folder=str(Path(__file__).parent)), sampler, str(n)]
    done = benchmark.pedantic(subprocess.run, (command,), {"check": True, "capture_output": True, "text": True}, rounds=1)
    rate, peak = map(float, done.stdout.split())
    benchmark.extra_info.update(sampler=sampler, n=n, indices_per_second=rate, bytes_per_label=peak)
    report = request.config.pluginmanager.get_plugin("terminalreporter")
    report.write_line(f"\n{sampler} {n}: {rate:.3g} indices/s, {peak:.1f} bytes a label")
