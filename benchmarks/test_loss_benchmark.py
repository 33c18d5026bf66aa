"""Time and memory of the losses, forward and backward, beside open_clip's in the same run, and the distance to the floor.

Small by default; ``BENCHMARK_FULL=1`` takes the sizes of the documentation. On a GPU features are bfloat16, on the CPU float32.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from losses import DEVICE, floor_seconds, losses, make_step
from memory import peak_mib

FULL = os.environ.get("BENCHMARK_FULL") == "1"
GPU = DEVICE.type == "cuda"
NAMES = list(losses(64, 4))
if not FULL:
    SHAPES = [(512, 128, 64)]
elif GPU:
    SHAPES = [(n, 512, 1000) for n in (1024, 4096, 8192, 16384, 32768, 65536, 131072)]
    SHAPES += [(32768, d, 1000) for d in (768, 1024)] + [(32768, 512, k) for k in (64, 16384)]
else:
    SHAPES = [(n, 512, 256) for n in (1024, 4096, 8192)]


@pytest.fixture(scope="module")
def baseline() -> dict[tuple[int, int, int], dict[str, float]]:
    """Keep what open_clip's loss took, by the shape."""
    return {}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}x{}, {} clusters".format(*shape))
@pytest.mark.parametrize("name", NAMES)
def test_loss(benchmark: Any, request: Any, baseline: Any, name: str, shape: tuple[int, int, int]) -> None:
    """Measure one loss."""
    n, d, k = shape
    benchmark.group = f"loss, forward and backward, {n} pairs, {d} features, {k} clusters"
    try:
        loss = losses(n, k)[name]
        forward, both = make_step(loss, n, d, backward=False), make_step(loss, n, d)
        benchmark.pedantic(both, rounds=10, warmup_rounds=3)
        measured = {"peak_mib": peak_mib(name, n, d, k)}
    except torch.OutOfMemoryError:
        benchmark.extra_info.update(name=name, n=n, d=d, k=k, out_of_memory=True)
        pytest.skip(f"{name} does not fit {n} pairs into the memory of this GPU")
    if benchmark.stats is not None:  # None where benchmarks only run as tests
        measured["seconds"] = benchmark.stats.stats.min
        measured["forward_seconds"] = _best(forward)
        measured["floor_over_achieved"] = floor_seconds(n, d) / measured["seconds"]
    first = baseline.setdefault(shape, measured)
    over = {
        f"{figure}_over_open_clip": measured[figure] / first[figure] for figure in ("seconds", "peak_mib") if first.get(figure)
    }
    benchmark.extra_info.update(name=name, n=n, d=d, k=k, **measured, **over)
    figures = ", ".join(f"{figure} {value:.3g}" for figure, value in (measured | over).items())
    request.config.pluginmanager.get_plugin("terminalreporter").write_line(f"\n{name} {shape}: {figures}")


def _best(step: Any, rounds: int = 5) -> float:
    import time

    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
