"""The backends of the loss: their names, where they run, and which one "auto" chooses."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec

import torch

from clip_negatives.errors import InputError, UnsupportedError

BACKENDS = ("auto", "torch", "chunked", "triton")
# Up to this many pairs, "auto" chooses the torch backend on the CPU. Measured on one thread of a busy AMD EPYC, D = 512,
# float32, 256 clusters: CPU time of a step over that of open_clip's loss, first on torch, then on chunked:
# - without weights 1.04 and 1.13 for 192 x 192 pairs, 0.99 and 0.92 for 256 x 256;
# - with targets 1.38 and 1.33 for 192 x 192 pairs, 1.19 and 1.14 for 256 x 256;
# - with log-weights alone 0.63 and 0.68 for 512 x 512 pairs, 0.60 and 0.62 for 768 x 768;
# - with normalised ones 0.70 and 0.74 for 512 x 512 pairs, 0.67 and 0.66 for 768 x 768.
FEW_PAIRS = 192 * 192
FEW_WEIGHTED_PAIRS = 768 * 768  # with log-weights alone, for which the torch backend has an analytical gradient
FEW_PAIRS_OF_ACCELERATORS = 8192 * 8192  # set by memory (256 MiB of float32 logits), not measured
FEW_WEIGHTED_PAIRS_OF_ACCELERATORS = 1024 * 1024  # not measured; fused kernels avoid the passes that log-weights add
HAS_TRITON = find_spec("triton") is not None  # at import, because torch.compile cannot trace the search
OLDEST_CAPABILITY = (8, 0)  # compute capability of the oldest GPUs with tensor cores for bfloat16


def select_backend(
    device: torch.device,
    rows: int,
    columns: int,
    *,
    dtype: torch.dtype = torch.float32,
    weighted: bool = False,
    treated: bool = False,
) -> tuple[str, str]:
    """Return the backend that "auto" chooses for a rows x columns loss, and the reason.

    Args:
        device: where the features are.
        rows: samples of this process.
        columns: samples of all processes, also with ``ring=True``.
        dtype: dtype of the features.
        weighted: whether there are log-weights, or targets by similarity (`LossTerms.target_factors`).
        treated: whether pairs have any treatment other than log-weights: targets, groups, a margin, hardness, debiasing,
            another weight of the positives, or extra texts or images.

    Examples:
        >>> select_backend(torch.device("cpu"), 128, 128)
        ('torch', '16384 pairs on cpu are few: one matrix of logits is fastest')
    """
    pairs = rows * columns
    if pairs <= _few_pairs(device, weighted=weighted, treated=treated):
        return "torch", f"{pairs} pairs on {device.type} are few: one matrix of logits is fastest"
    obstacle = triton_obstacle(device, dtype)
    if obstacle is None and device.type == "cuda":  # interpreted kernels are for tests
        return "triton", f"{pairs} pairs on {device.type}: fused kernels"
    reason = f"blocks need fewer products and less memory (triton: {obstacle or 'interpreted'})"
    return "chunked", f"{pairs} pairs on {device.type}: {reason}"


def _few_pairs(device: torch.device, *, weighted: bool, treated: bool) -> int:
    """Return the number of pairs up to which "auto" chooses the torch backend."""
    if device.type == "cpu":
        return FEW_WEIGHTED_PAIRS if weighted and not treated else FEW_PAIRS
    return FEW_WEIGHTED_PAIRS_OF_ACCELERATORS if weighted else FEW_PAIRS_OF_ACCELERATORS


def check_backend(name: str, device: torch.device, *, dtype: torch.dtype = torch.float32) -> None:
    """Check that a backend exists and runs on a device, for features of `dtype`.

    Raises:
        InputError: the backend does not exist.
        UnsupportedError: "triton" cannot run on the device.
    """
    if name not in BACKENDS:
        raise InputError(f"There is no backend {name!r}. Use one of: {', '.join(BACKENDS)}.")
    obstacle = triton_obstacle(device, dtype) if name == "triton" else None
    if obstacle is not None:
        raise UnsupportedError(f"The triton backend cannot run here: {obstacle}. Use backend 'auto'.")


def interpreted() -> bool:
    """Return whether triton interprets kernels on the CPU, as with ``TRITON_INTERPRET=1``."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the triton backend cannot run for features of `dtype` on `device`, or None."""
    if not HAS_TRITON:
        return "the package triton is missing"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it does not support {dtype}"
    if device.type == "cpu" and interpreted():
        return None
    if device.type != "cuda":
        return f"it runs on CUDA, not on {device.type}"
    return _gpu_obstacle(device.index or 0)


@functools.cache
def _gpu_obstacle(index: int) -> str | None:
    if not torch.cuda.is_available():
        return "there is no working CUDA driver"
    if torch.version.hip is not None:
        return "it is not tested on AMD GPUs"
    major, minor = torch.cuda.get_device_capability(index)
    return None if (major, minor) >= OLDEST_CAPABILITY else f"the GPU has compute capability {major}.{minor}, below 8.0"


def one_tf32_product() -> bool:
    """Return whether torch may compute a float32 product as one TF32 product: faster, but less exact."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # once this newer setting is in use, torch forbids reading the older one
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"
