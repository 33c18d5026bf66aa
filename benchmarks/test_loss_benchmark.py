"""Time and memory of the losses, forward and backward, relative to open_clip's in the same run and to the floor.

``BENCHMARK_FULL=1`` takes the sizes of the documentation. Features are bfloat16 on a GPU, float32 on the CPU.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from losses import DEVICE, cannot, floor_seconds, loss_of, make_step, names
from memory import peak_mib

FULL = os.environ.get("BENCHMARK_FULL") == "1"
GPU = DEVICE.type == "cuda"
ROUNDS = 10 if FULL else 3
ROUNDS_OF_SMALL = 20 * ROUNDS  # of a batch up to 256, whose step is short
LEAST_MIB = 16  # below it, the resident memory of a process does not show what a step takes
if not FULL:
    SHAPES = [(512, 256 if GPU else 128, 64)]  # inf-cl takes multiples of 256 features
elif GPU:
    SHAPES = [(n, 512, 1000) for n in (1024, 4096, 8192, 16384, 32768, 65536, 131072)]
    SHAPES += [(32768, d, 1000) for d in (768, 1024)] + [(32768, 512, k) for k in (64, 16384)]
else:
    SHAPES = [(n, 512, 256) for n in (64, 256, 1024, 4096)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}x{}, {} clusters".format(*shape))
@pytest.mark.parametrize("name", names())
def test_loss(benchmark: Any, request: Any, name: str, shape: tuple[int, int, int]) -> None:
    """Measure one loss; open_clip's takes a step before each of its steps, so that other work slows both."""
    n, d, k = shape
    benchmark.group = f"loss, forward and backward, {n} pairs, {d} features, {k} clusters"
    loss, baseline = loss_of(name, n, k), make_step(loss_of("open_clip", n, k), n, d)
    step = make_step(loss, n, d)
    measured: dict[str, Any] = {}
    reason = cannot(name, lambda: measured.update(peak_mib=(step(), peak_mib(name, n, d, k))[1]))
    if reason is not None:
        benchmark.pedantic(lambda: None, rounds=1)  # results have a row for each benchmark that ran
        benchmark.extra_info.update(name=name, n=n, d=d, k=k, cannot=reason)
        return
    if cannot("open_clip", baseline):
        baseline = None
    theirs: list[float] = []
    rounds = ROUNDS_OF_SMALL if n <= 256 else ROUNDS
    benchmark.pedantic(step, setup=lambda: theirs.append(_seconds(baseline)), rounds=rounds, warmup_rounds=2)
    if benchmark.stats is not None:  # None with --benchmark-disable
        mine = benchmark.stats.stats.data
        measured["seconds"] = min(mine)
        for passes in ("forward", "backward"):
            step = make_step(loss, n, d, passes=passes)
            measured[f"{passes}_seconds"] = min(_seconds(step) for _ in range(5))
        measured["floor_over_achieved"] = floor_seconds(n, d) / measured["seconds"]
        if baseline is not None:
            pairs = zip(mine, theirs[-len(mine) :], strict=True)
            measured["seconds_over_open_clip"] = statistics.median(one / other for one, other in pairs)
    if baseline is not None and (theirs_mib := _peak_of_open_clip(n, d, k)) >= LEAST_MIB:
        measured["peak_mib_over_open_clip"] = measured["peak_mib"] / theirs_mib
    benchmark.extra_info.update(name=name, n=n, d=d, k=k, **measured)
    figures = ", ".join(f"{figure} {value:.3g}" for figure, value in measured.items())
    request.config.pluginmanager.get_plugin("terminalreporter").write_line(f"\n{name} {shape}: {figures}")


@functools.cache
def _peak_of_open_clip(n: int, d: int, k: int) -> float:
    return peak_mib("open_clip", n, d, k)


def _seconds(step: Callable[[], None] | None) -> float:
    start = time.perf_counter()
    if step is not None:
        step()
    return time.perf_counter() - start
