"""Defaults, checks and tools for clusterers; each check raises an `InputError` that names the option."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_number


def default_n_clusters(n_samples: int) -> int:
    """Return K for N samples: ``4 sqrt(N)``, at most N // 8, at least 2 (1 for a single sample).

    Our choice: clusters then hold several samples each, and a K x K table stays small (64 MB for a million samples).
    """
    return max(min(2, n_samples), min(round(4 * math.sqrt(n_samples)), n_samples // 8))


def check_counts(clusterer: str, *, seed: int | None, **counts: int | None) -> None:
    """Check that each count is at least 1 and that the seed is within 0 .. 2^31-1; None is valid."""
    for name, count in counts.items():
        check_number(f"{name} of {clusterer}", count, at_least=1)
    check_number(f"seed of {clusterer}", seed, at_least=0, below=2**31)


def check_device(clusterer: str, name: str) -> None:
    """Check that this machine has the device `name`: "cpu", "cuda", "cuda:1"."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    count = torch.cuda.device_count() if device.type == "cuda" else int(device.type == "cpu")
    if (device.index or 0) >= count:
        raise InputError(f"{clusterer} cannot use device={name}. Use device=cpu, or on a machine with a GPU device=cuda.")


def check_n_clusters(n_clusters: int, n_samples: int) -> None:
    """Check that there are at least as many samples as clusters."""
    if n_clusters > n_samples:
        raise InputError(f"n_clusters={n_clusters} is more than the number of samples ({n_samples}). Use fewer clusters.")


def default_n_clusters_of(blocks: Iterable[Tensor], n_samples: int) -> int:
    """Return `default_n_clusters`, or the number of different rows if there are fewer, but at least 2.

    Rows that differ by rounding only, like features of one image in two batches, count as equal.

    Args:
        blocks: the rows of all samples, float, each of shape (n, D); only as many as needed are read.
        n_samples: N.
    """
    k = default_n_clusters(n_samples)
    return min(k, max(2, count_distinct(map(_rounded_projections, blocks), k)))


def _rounded_projections(rows: Tensor) -> Tensor:
    """Return four random projections of each row: fewer than all columns, so that few lie on an edge of the rounding."""
    directions = torch.randn(rows.shape[1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows.double() @ directions).round(decimals=3)


def count_distinct(blocks: Iterable[Tensor], at_most: int) -> int:
    """Return the number of different rows of all blocks, each of shape (n, D), counted up to `at_most`.

    >>> count_distinct([torch.eye(3), torch.eye(3)], at_most=8)
    3
    """
    seen: set[bytes] = set()
    for block in blocks:
        for row in (block + 0.0).numpy():  # + 0.0 turns -0.0 into 0.0: both count as equal
            seen.add(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
            if len(seen) >= at_most:
                return at_most
    return len(seen)


def check_distinct(n_distinct: int, n_clusters: int) -> None:
    """Check that there are at least as many different samples as clusters."""
    if n_distinct == 1 < n_clusters:
        repair = "Check that the samples differ, and that the encoder tells them apart."
        raise InputError(f"All samples have the same features, so they cannot be clustered. {repair}")
    if n_distinct < n_clusters:
        fault = f"The samples have {n_distinct} different features, too few for {n_clusters} clusters."
        raise InputError(f"{fault} Set the option n_clusters={n_distinct} or fewer of the clusterer.")


def check_features(features: Tensor) -> None:
    """Check that features are floating-point, of shape (N, D), N and D at least 1; values are not checked."""
    if features.ndim != 2 or 0 in features.shape:
        raise InputError(f"Expected features of shape (N, D), got {tuple(features.shape)}.")
    if not features.is_floating_point():
        raise InputError(f"Expected floating-point features, got {features.dtype}.")


def non_finite_row(rows: Tensor) -> int | None:
    """Return the first row that contains NaN or infinity, or None."""
    finite = rows.isfinite()
    return None if bool(finite.all()) else int((~finite).any(dim=1).nonzero()[0])


OPENBLAS_CORE_TYPES = {"AVX2": "Haswell", "AVX512": "SkylakeX"}
"""Core type of OpenBLAS for each instruction set that torch reports."""


_LOADING = threading.Lock()


def load_faiss() -> Any:
    """Return the module faiss, without its log messages about other processors.

    The wheels of faiss contain OpenBLAS 0.3.15 of 2021. On newer processors, it chooses code without AVX, and k-means takes 2
    to 4 times as long. So this function sets ``OPENBLAS_CORETYPE`` while faiss is imported, unless the user has set it;
    OpenBLAS reads it once.
    """
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    core_type = OPENBLAS_CORE_TYPES.get(torch.backends.cpu.get_cpu_capability())
    with _LOADING:
        if core_type is None or "faiss" in sys.modules or "OPENBLAS_CORETYPE" in os.environ:
            return _imported_faiss()
        os.environ["OPENBLAS_CORETYPE"] = core_type
        try:
            return _imported_faiss()
        finally:
            del os.environ["OPENBLAS_CORETYPE"]


def _imported_faiss() -> Any:
    import faiss

    return faiss
