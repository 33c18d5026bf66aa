"""Run every benchmark and keep its result file: python benchmarks/run.py [arguments of pytest].

At full size (``BENCHMARK_FULL=1``) the files go to ``benchmarks/results/<machine>/`` and the page of the documentation is
written anew; else to ``.benchmarks/<machine>/``, which git ignores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


def main() -> int:
    """Run them one after the other; return how many failed."""
    folder = (HERE / "results" if FULL else HERE.parent / ".benchmarks") / machine()
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for file in sorted(HERE.glob("test_*_benchmark.py")):
        kind = file.stem.removeprefix("test_").removesuffix("_benchmark")
        result = folder / f"{kind}.json"
        command = [sys.executable, "-m", "pytest", str(file), "--benchmark-only", f"--benchmark-json={result}", *sys.argv[1:]]
        failed += subprocess.run(command, check=False).returncode != 0
    if FULL and not failed:
        subprocess.run([sys.executable, str(HERE / "report.py")], check=True)
    print(f"Results: {folder}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
