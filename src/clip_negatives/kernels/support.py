"""Where the fused kernels can run."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPUs whose tensor cores take bfloat16."""


def interpreted() -> bool:
    """Return whether triton interprets kernels on the CPU, as ``TRITON_INTERPRET=1`` asks it to."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_is_missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what the triton backend lacks for features of `dtype` on `device`, None if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "no triton package"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"features of {dtype}"
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"features on {device.type}"
    return _capability_is_missing(device.index or 0)


@functools.cache
def _capability_is_missing(index: int) -> str | None:
    if not torch.cuda.is_available():
        return "a working CUDA driver"
    if torch.version.hip is not None:
        return "an AMD GPU, which nobody has tried"
    found = torch.cuda.get_device_capability(index)
    return None if found >= OLDEST_CAPABILITY else f"a GPU of compute capability {found[0]}.{found[1]}"


def one_tf32_product() -> bool:
    """Return whether torch is allowed to take one TF32 product for one of float32, which is quicker and less exact."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # asking the older way is an error once someone has used the newer one
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"
