"""Additional peak memory of one step of a loss in MiB: python benchmarks/memory.py "chunked weighted" 8192 512 256."""

from __future__ import annotations

import subprocess
import sys

import torch
from losses import DEVICE, losses, make_step
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


def _measure(name: str, n: int, d: int, k: int) -> float:
    make_step(losses(64, k)[name], 64, d)()  # start threads and libraries
    step = make_step(losses(n, k)[name], n, d)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    forget_peak()
    before = memory_mib()
    step()
    return memory_mib() - before


if __name__ == "__main__":
    print(_measure(sys.argv[1], *map(int, sys.argv[2:])))
