"""Additional peak memory of one step of a loss in MiB: python benchmarks/memory.py "chunked weighted" 8192 512 256."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from losses import DEVICE, loss_of, make_step
from run import forget_peak, memory_mib


def peak_mib(name: str, n: int, d: int, k: int) -> float:
    """Return the peak of a loss, measured in a process of its own.

    Raises:
        torch.OutOfMemoryError: the memory is too small.
        subprocess.CalledProcessError: the loss cannot run.
    """
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()  # memory that this process caches is missing in the new one
    program = [sys.executable, __file__, name, str(n), str(d), str(k)]
    try:
        return float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    except subprocess.CalledProcessError as error:
        if "OutOfMemoryError" in error.stderr:
            raise torch.OutOfMemoryError(error.stderr.splitlines()[-1]) from error
        raise


def device_peak_mib(step: Callable[[], object]) -> float:
    """Return the additional peak memory of a step on the GPU, as the caching allocator of this process counts it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _measure(name: str, n: int, d: int, k: int) -> float:
    make_step(loss_of(name, 64, k), 64, d)()  # start threads and libraries
    step = make_step(loss_of(name, n, k), n, d)
    if DEVICE.type == "cuda":
        return device_peak_mib(step)
    forget_peak()
    before = memory_mib()
    step()
    return memory_mib() - before


if __name__ == "__main__":
    print(_measure(sys.argv[1], *map(int, sys.argv[2:])))
