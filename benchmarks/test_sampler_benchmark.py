"""Indices per second of the samplers, the additional memory of an epoch, and the wait for the first batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FULL = os.environ.get("BENCHMARK_FULL") == "1"
SIZES = [10**6, 10**8] if FULL else [10**5]
FIRST_BATCH = (10**7, 16_000) if FULL else (2**20, 500)  # samples and clusters

CLUSTERS = """
import sys, time, torch
sys.path.insert(0, {folder!r})
from run import forget_peak, memory_mib
from clip_negatives import Method
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.clustering.similarity import centroid_similarity
n, k, batch = int(sys.argv[2]), int(sys.argv[3]), 4096
generator = torch.Generator().manual_seed(0)
def side():
    centroids = torch.nn.functional.normalize(torch.randn(k, 64, generator=generator), dim=1)
    return Clustering(torch.randint(k, (n,), generator=generator), centroids), centroid_similarity(centroids)
(image, a), (text, b) = side(), side()
context = SamplingContext.of(Clusters(image, text, a, b), batch, seed=0)
forget_peak()
before, start = memory_mib(), time.perf_counter()
sampler = Method(sys.argv[1]).create_sampler(context)
"""

EPOCH = """
count = sum(len(batch) for batch in sampler)
print(count / (time.perf_counter() - start), (memory_mib() - before) * 2**20 / n)
"""

WAIT = """
marks = [time.process_time()]
for _ in sampler:
    marks.append(time.process_time())
print(marks[1] - marks[0], marks[-1] - marks[0])
"""


def run(benchmark: Any, program: str, sampler: str, n: int, k: int) -> list[float]:
    """Return the figures that a program prints, in a process of its own."""
    command = [sys.executable, "-c", CLUSTERS.format(folder=str(Path(__file__).parent)) + program, sampler, str(n), str(k)]
    done = benchmark.pedantic(subprocess.run, (command,), {"check": True, "capture_output": True, "text": True}, rounds=1)
    return [float(figure) for figure in done.stdout.split()]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("sampler", ["in_batch", "cluster_similarity"])
def test_sampler(benchmark: Any, request: Any, sampler: str, n: int) -> None:
    """Measure one epoch in a process of its own."""
    benchmark.group = f"sampler, {n} samples, 1000 clusters, steps of 4096"
    rate, peak = run(benchmark, EPOCH, sampler, n, 1000)
    benchmark.extra_info.update(sampler=sampler, n=n, indices_per_second=rate, bytes_per_label=peak)
    report = request.config.pluginmanager.get_plugin("terminalreporter")
    report.write_line(f"\n{sampler} {n}: {rate:.3g} indices/s, {peak:.1f} bytes a label")


@pytest.mark.parametrize("sampler", ["in_batch", "cluster_similarity"])
def test_first_batch(benchmark: Any, request: Any, sampler: str) -> None:
    """Measure the processor time until the first batch, as a share of the whole epoch's."""
    n, k = FIRST_BATCH
    benchmark.group = f"first batch, {n} samples, {k} clusters, steps of 4096"
    first, epoch = run(benchmark, WAIT, sampler, n, k)
    benchmark.extra_info.update(sampler=sampler, n=n, first_batch_seconds=first, first_batch_over_epoch=first / epoch)
    report = request.config.pluginmanager.get_plugin("terminalreporter")
    report.write_line(f"\n{sampler} {n}: first batch {first:.2f} CPU seconds, {first / epoch:.3f} of the epoch")
