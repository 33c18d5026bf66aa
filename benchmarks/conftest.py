"""Add the machine and the versions to every result file."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "open_clip_torch", "clip-negatives", "faiss-cpu", "memeff", "inf-cl")


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Replace the host name by the hardware, and add the versions."""
    machine_info.update(machine() | devices())
    for name in ("release", "python_build", "python_compiler"):
        machine_info.pop(name, None)
    machine_info["cpu"] = {name: machine_info["cpu"].get(name) for name in ("brand_raw", "count", "arch")}


def machine() -> dict[str, Any]:
    """Return the processor, the number of cores and the versions of the packages."""
    return {"node": processor(), "cores": os.cpu_count(), "versions": {name: _version(name) for name in PACKAGES}}


def devices() -> dict[str, Any]:
    """Return the number of threads, the GPUs and their driver."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    driver = _driver() if torch.cuda.is_available() else None
    return {"threads": torch.get_num_threads(), "gpus": gpus, "driver": driver}


def _driver() -> str:
    """Return the version of the driver of the GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
