"""Time and memory of the loss beside open_clip's, on the CPU: forward and backward.

Small by default; the sizes of the documentation, and a result file::

    BENCHMARK_FULL=1 pytest benchmarks/test_loss_benchmark.py --benchmark-json results.json

Each line that is printed, and ``extra_info`` in the file, gives the time over that of open_clip's unweighted loss with
as many pairs in the same run, and the peak memory of a step, measured in a process of its own. As a program it prints
the latter in MiB::

    python benchmarks/test_loss_benchmark.py chunked normalized 8192
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip import ClipLoss

from clip_negatives.functional import weighted_info_nce
from clip_negatives.interfaces import LossTerms

FEATURES, CLUSTERS, SCALE = 512, 256, 14.3
WEIGHTS = ("none", "weighted", "normalized")
SIZES = [1024, 4096, 8192] if os.environ.get("BENCHMARK_FULL") == "1" else [512]
CASES = [("open_clip", "none"), *((backend, w) for w in WEIGHTS for backend in ("torch", "chunked"))]


def make_step(backend: str, weights: str, n: int) -> Callable[[], None]:
    """Return a step of `backend` ("open_clip", "torch" or "chunked") with n pairs, float32, two tables of 256 clusters."""
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(side, dim=1).requires_grad_() for side in torch.randn(2, n, FEATURES, generator=generator))
    scale = torch.tensor(SCALE, requires_grad=True)
    labels = torch.randint(CLUSTERS, (2, n), generator=generator)
    tables = -torch.rand(2, CLUSTERS, CLUSTERS, generator=generator)
    terms = LossTerms(labels[0], tables[0], labels[1], tables[1], normalize=weights == "normalized")
    open_clips_loss = ClipLoss()

    def step() -> None:
        if backend == "open_clip":
            loss = open_clips_loss(x, y, scale)
        else:
            loss = weighted_info_nce(x, y, scale, terms=None if weights == "none" else terms, backend=backend)
        torch.autograd.grad(loss, (x, y, scale))

    return step


def peak_memory(backend: str, weights: str, n: int) -> float:
    """Return the peak of resident memory of one step in MiB beyond what was there, gradients included.

    For a process of its own: memory that earlier work left behind would hide what a step needs.
    """
    make_step(backend, weights, 64)()  # threads and libraries start
    step = make_step(backend, weights, n)
    before = _peak(reset=True)
    step()
    return (_peak(reset=False) - before) / 2**20


def _peak(reset: bool) -> int:
    """Return the peak of resident memory in bytes; `reset` starts it anew at what is resident now, where Linux can."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        clear.write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def baseline() -> dict[int, dict[str, float]]:
    """Keep what open_clip's loss took, by the number of pairs."""
    return {}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("backend", "weights"), CASES)
def test_loss(benchmark: Any, request: Any, baseline: Any, backend: str, weights: str, n: int) -> None:
    """Measure one backend with one kind of weights."""
    benchmark.group = f"loss, forward and backward, {n} pairs, {FEATURES} features"
    benchmark.pedantic(make_step(backend, weights, n), rounds=10, warmup_rounds=2)
    measured = {"peak_mib": _peak_memory(backend, weights, n)}
    if benchmark.stats is not None:  # None where benchmarks only run as tests
        measured["seconds"] = benchmark.stats.stats.min
    first = baseline.setdefault(n, measured)
    over = {f"{name}_over_open_clip": measured[name] / first[name] for name in measured if first[name]}
    benchmark.extra_info.update(backend=backend, weights=weights, n=n, **measured, **over)
    figures = ", ".join(f"{name} {value:.3g}" for name, value in (measured | over).items())
    request.config.pluginmanager.get_plugin("terminalreporter").write_line(f"\n{backend} {weights} {n}: {figures}")


def _peak_memory(backend: str, weights: str, n: int) -> float:
    program = [sys.executable, __file__, backend, weights, str(n)]
    return float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(peak_memory(sys.argv[1], sys.argv[2], int(sys.argv[3])))
