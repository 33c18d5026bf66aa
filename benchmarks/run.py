"""Run every benchmark and keep its result file: python benchmarks/run.py [arguments of pytest].

With ``BENCHMARK_FULL=1`` the files go to ``benchmarks/results/<machine>/`` and docs/benchmarks.md is written; else they go to
``.benchmarks/<machine>/``, which git ignores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import processor

HERE = Path(__file__).parent
FULL = os.environ.get("BENCHMARK_FULL") == "1"


def machine() -> str:
    """Return the name of this machine's folder."""
    if torch.cuda.is_available():
        name = f"{torch.cuda.device_count()}-{torch.cuda.get_device_name()}"
    else:
        name = f"{processor()}-{os.cpu_count()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def result_file(name: str, *, small: bool) -> Path:
    """Return the result file of this machine; that of a small run is in ``.benchmarks``."""
    return (HERE.parent / ".benchmarks" if small else HERE / "results") / machine() / name


def write_json(file: Path, content: Any) -> Path:
    """Write a result file atomically and return it."""
    from clip_negatives.storage.ownership import replaced_file

    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")
    return file


def memory_mib(name: str = "VmHWM") -> float:
    """Return a figure of ``/proc/self/status`` in MiB: by default the peak of this process's resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    """Reset the peak of resident memory to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> int:
    """Run all benchmarks; return the number of failures."""
    failed = 0
    for test in sorted(HERE.glob("test_*_benchmark.py")):
        file = result_file(f"{test.stem.removeprefix('test_').removesuffix('_benchmark')}.json", small=not FULL)
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pytest", str(test), "--benchmark-only", f"--benchmark-json={file}", *sys.argv[1:]]
        failed += subprocess.run(command, check=False).returncode != 0
    if FULL and not failed:
        subprocess.run([sys.executable, str(HERE / "report.py")], check=True)
    print(f"Results: {result_file('', small=not FULL)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
