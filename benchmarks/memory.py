"""Peak memory of one step of a loss beyond what was there before, in MiB; as a program, so that nothing else hides it.

python benchmarks/memory.py "chunked weighted" 8192 512 256
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import torch
from losses import DEVICE, losses, make_step


def peak_mib(name: str, n: int, d: int, k: int) -> float:
    """Return the peak of a loss, measured in a process of its own.

    Raises:
        torch.OutOfMemoryError: it does not fit there.
        subprocess.CalledProcessError: it cannot run at all.
    """
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()  # what this process keeps for itself is missing there
    program = [sys.executable, __file__, name, str(n), str(d), str(k)]
    try:
        return float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    except subprocess.CalledProcessError as error:
        if "OutOfMemoryError" in error.stderr:
            raise torch.OutOfMemoryError(error.stderr.splitlines()[-1]) from error
        raise


def _measure(name: str, n: int, d: int, k: int) -> float:
    make_step(losses(64, k)[name], 64, d)()  # threads and libraries start
    step = make_step(losses(n, k)[name], n, d)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _resident(reset=True)
    step()
    return (_resident(reset=False) - before) / 2**20


def _resident(*, reset: bool) -> int:
    """Return the peak of resident memory in bytes; `reset` starts it anew at what is resident now, where Linux can."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        clear.write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_measure(sys.argv[1], *map(int, sys.argv[2:])))
