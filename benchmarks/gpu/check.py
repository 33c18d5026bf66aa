"""What a machine has, and what is missing on it: python -m gpu.check (started by `python benchmarks/gpu check`)."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys

from gpu.exit_codes import FAILED, FINISHED

# Imported by the tests of the kernels and the benchmarks; of other dependencies only the version is shown.
NEEDED = (
    *("torch", "triton", "numpy", "open_clip", "faiss", "pytest", "hypothesis"),
    *("losses", "memory", "gpu.measure", "clip_negatives_plugins.kmeans.clusterer", "clip_negatives.losses.kernels.fused"),
)
OPTIONAL = ("xdist", "pytest_timeout", "memeff", "inf_cl")
"""Without the first two, tests run one after another and without a limit for each."""


def main() -> int:
    """Print versions and devices; return the exit code."""
    print(f"Python {sys.version.split()[0]}")
    for requirement in importlib.metadata.requires("clip-negatives") or ():
        if "extra ==" not in requirement:
            print(f"  {requirement:40} {_version(requirement) or 'missing'}")
    print(f"  plugins: {len(importlib.metadata.entry_points(group='clip_negatives'))}")
    missing = [reason for name in NEEDED if (reason := _obstacle(name))]
    optional = [reason for name in OPTIONAL if (reason := _obstacle(name))]
    print("Optional, missing:", "; ".join(optional) or "nothing")
    print("Needed, missing:", "; ".join(missing) or "nothing")
    if "torch" in sys.modules:
        _print_devices()
    return FAILED if missing else FINISHED


def _version(requirement: str) -> str | None:
    try:
        return importlib.metadata.version(re.split(r"[^A-Za-z0-9_.-]", requirement)[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def _obstacle(name: str) -> str | None:
    """Return why a module cannot be imported, None if it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package is no reason to stop
        return f"{name} ({type(error).__name__}: {error})".splitlines()[0]
    return None


def _print_devices() -> None:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"torch {torch.__version__}, GPUs: {', '.join(names) or 'none'}")
    print("Half-precision addmm with float32 results:", "dtype_out" in torch.ops.aten.addmm.overloads())


if __name__ == "__main__":
    sys.exit(main())
