"""Cases of the losses: ours, open_clip's and fused ones of other packages, and where the time of a step goes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from losses import DEVICE, cannot, floor_seconds, loss_of, make_step
from memory import device_peak_mib
from torch.profiler import ProfilerActivity, profile

from gpu.cases import Case

NAMES = (
    *("open_clip", "triton none", "triton weighted", "memeff", "triton normalized", "triton scheduled", "triton sorted"),
    *("inf-cl", "torch none", "torch weighted", "torch normalized", "chunked none", "chunked weighted"),
)
PROFILED = ("triton weighted", "triton none", "open_clip", "memeff")
# Not measured beyond this many pairs: too slow or, as open_clip's loss, more memory than there is.
# 131072 pairs take open_clip four matrices of 32 GiB.
LIMITS = {"chunked": 16384, "torch": 32768, "inf-cl": 65536, "open_clip": 65536}
FULL = os.environ.get("BENCHMARK_FULL") == "1"
WARMUPS, ROUNDS, PASS_ROUNDS = (2, 10, 5) if FULL else (0, 1, 1)
MOST_SECONDS = 15.0  # of the rounds of one case
MOST_KERNELS = 25  # rows of a profile


class Shape(NamedTuple):
    """Size of a problem: pairs, features, and clusters of both modalities."""

    n: int
    d: int
    k: int

    def __str__(self) -> str:
        return f"{self.n} pairs, {self.d} features, {self.k} clusters"


def loss_cases(shape: Shape, names: tuple[str, ...] = NAMES) -> Iterator[Case]:
    """Yield a case for each loss that can take the shape."""
    for name in names:
        if shape.n <= _limit(name):
            seconds = 120.0 if "compiled" in name else 30.0
            group = f"loss, forward and backward, {shape}"
            yield Case("loss", group, name, lambda name=name: _loss_figures(name, shape), seconds)


def profile_cases(shape: Shape) -> Iterator[Case]:
    """Yield a profile of one step for the most important losses."""
    for name in PROFILED:
        group = f"kernels of a step, {name}, {shape}"
        yield Case("profile", group, "profile", lambda name=name: _profile_figures(name, shape))


def seconds_of(step: Callable[[], object]) -> float:
    """Return the seconds of one step; steps wait for the GPU."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def paired_seconds(step: Callable[[], None], baseline: Callable[[], None] | None) -> dict[str, Any]:
    """Return the times of a step; open_clip's step goes before each, so that other work slows both."""
    seconds: list[float] = []
    ratios: list[float] = []
    start = time.perf_counter()
    while len(seconds) < ROUNDS and (not seconds or time.perf_counter() - start < MOST_SECONDS):
        baseline_seconds = None if baseline is None else seconds_of(baseline)
        seconds.append(seconds_of(step))
        if baseline_seconds is not None:
            ratios.append(seconds[-1] / baseline_seconds)
    figures: dict[str, Any] = {"seconds": min(seconds), "rounds": seconds}
    return figures | ({"seconds_over_open_clip": statistics.median(ratios)} if ratios else {})


def _limit(name: str) -> float:
    return next((limit for start, limit in LIMITS.items() if name.startswith(start)), float("inf"))


def _loss_figures(name: str, shape: Shape) -> dict[str, Any]:
    n, d, k = shape
    figures: dict[str, Any] = {"name": name, **shape._asdict()}
    steps: list[Callable[[], None]] = []
    start = time.perf_counter()
    reason = cannot(name, lambda: (steps.append(make_step(loss_of(name, n, k), n, d)), steps[0]()))
    if reason is not None:
        return {**figures, "cannot": reason}
    figures["first_call_seconds"] = time.perf_counter() - start
    (step,) = steps
    baseline = make_step(loss_of("open_clip", n, k), n, d) if n <= LIMITS["open_clip"] else None
    for _ in range(WARMUPS):
        step()
        if baseline is not None:
            baseline()
    figures |= paired_seconds(step, baseline)
    figures["floor_over_achieved"] = floor_seconds(n, d) / figures["seconds"]
    if DEVICE.type == "cuda":
        figures["peak_mib"] = device_peak_mib(step)
        if baseline is not None:
            figures["peak_mib_over_open_clip"] = figures["peak_mib"] / device_peak_mib(baseline)
    for passes in ("forward", "backward"):
        one_pass = make_step(loss_of(name, n, k), n, d, passes=passes)
        figures[f"{passes}_seconds"] = min(seconds_of(one_pass) for _ in range(PASS_ROUNDS))
    return figures


def _profile_figures(name: str, shape: Shape) -> dict[str, Any]:
    """Return the kernels that take longest in a step, and how many are launched."""
    n, d, k = shape
    figures: dict[str, Any] = {"name": name, **shape._asdict()}
    try:
        step = make_step(loss_of(name, n, k), n, d)
    except ModuleNotFoundError as error:
        return {**figures, "cannot": str(error)}
    for _ in range(WARMUPS):
        step()
    gpu = DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        step()
    averages = profiler.key_averages()
    time_of = "self_device_time_total" if gpu else "self_cpu_time_total"
    longest = sorted(averages, key=lambda average: getattr(average, time_of), reverse=True)[:MOST_KERNELS]
    kernels = [
        {"kernel": average.key[:80], "launches": average.count, "microseconds": round(float(getattr(average, time_of)), 1)}
        for average in longest
        if getattr(average, time_of)
    ]
    launches = sum(average.count for average in averages if "LaunchKernel" in average.key)
    return {**figures, "launches": launches, "kernels": kernels}
