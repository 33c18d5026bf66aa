"""The backends of the loss: which there are, where they run, and which one "auto" takes."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.kernels.support import triton_is_missing

BACKENDS = ("auto", "torch", "chunked", "triton")
"""Names that `weighted_info_nce` takes."""

FEW_PAIRS = 256 * 256
"""Up to so many pairs "auto" takes the torch backend on the CPU.

Measured on a 2-core EPYC, D = 512, float32, CPU time of a step over open_clip's: chunked takes 1.4 for 64 x 64, 1.0
for 128 x 128, 0.84 for 256 x 256, where 1 ms is at stake, and 0.74 for 512 x 512.
"""

FEW_PAIRS_OF_ACCELERATORS = 8192 * 8192
"""The same on other devices, by memory and not measured: beyond, every matrix of float32 logits is over 256 MiB."""

FEW_WEIGHTED_PAIRS_OF_ACCELERATORS = 1024 * 1024
"""The same with log-weights, not measured either: they add passes over matrices that fused kernels do without."""


def select_backend(
    device: torch.device, rows: int, columns: int, *, dtype: torch.dtype = torch.float32, weighted: bool = False
) -> tuple[str, str]:
    """Return the backend that "auto" takes for a rows x columns loss, and why.

    Args:
        device: where the features are.
        rows: samples of this process.
        columns: samples that they are contrasted with; those of all processes, also with the ring.
        dtype: of the features.
        weighted: whether there are log-weights.

    Examples:
        >>> select_backend(torch.device("cpu"), 256, 256)
        ('torch', '65536 pairs on cpu are few: one matrix of logits is quickest')
    """
    pairs = rows * columns
    few = FEW_WEIGHTED_PAIRS_OF_ACCELERATORS if weighted else FEW_PAIRS_OF_ACCELERATORS
    if pairs <= (FEW_PAIRS if device.type == "cpu" else few):
        return "torch", f"{pairs} pairs on {device.type} are few: one matrix of logits is quickest"
    missing = triton_is_missing(device, dtype)
    if missing is None and device.type == "cuda":  # interpreted kernels are for tests
        return "triton", f"{pairs} pairs on {device.type}: fused kernels"
    return (
        "chunked",
        f"{pairs} pairs on {device.type}: blocks need fewer products and less memory (triton: {missing or 'interpreted'})",
    )


def check_backend(name: str, device: torch.device, *, dtype: torch.dtype = torch.float32) -> None:
    """Refuse a backend that does not exist, or does not run on a device.

    Raises:
        InputError: there is no such backend.
        UnsupportedError: "triton" is asked for where it cannot run.
    """
    if name not in BACKENDS:
        raise InputError(f"Expected a backend among {', '.join(BACKENDS)}, got {name!r}.")
    missing = triton_is_missing(device, dtype) if name == "triton" else None
    if missing is not None:
        raise UnsupportedError(f"Expected a CUDA device and what the triton backend needs, got {missing}. Use backend 'auto'.")


def chosen_backend(name: str, x: Tensor, n_columns: int, *, weighted: bool) -> str:
    """Return the backend that was asked for, once it is known to exist and to run here."""
    check_backend(name, x.device, dtype=x.dtype)
    return select_backend(x.device, len(x), n_columns, dtype=x.dtype, weighted=weighted)[0] if name == "auto" else name
