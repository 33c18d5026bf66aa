from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.clustering.options import default_n_clusters, default_n_clusters_of


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (16, 2), (100, 12), (8948, 378), (1_000_000, 4000)])
def test_default_number_of_clusters(n: int, k: int) -> None:
    assert default_n_clusters(n) == k


def test_default_is_at_most_the_number_of_different_samples() -> None:
    """Features of one image in two batches differ in the last bits; they count as one."""
    points = F.normalize(torch.randn(10, 300, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = points.repeat(20, 1) + 1e-8 * torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    assert default_n_clusters(200) == 25
    assert default_n_clusters_of(rows.split(30), 200) == 10
    assert default_n_clusters_of([points[:1].repeat(200, 1)], 200) == 2
    assert default_n_clusters_of([torch.randn(200, 300, generator=torch.Generator().manual_seed(0))], 200) == 25


LOADED = """
import os, threadpoolctl
from clip_negatives.clustering.options import OPENBLAS_CORE_TYPES, load_faiss
import torch
load_faiss()
blas = [each for each in threadpoolctl.threadpool_info() if "faiss" in each["filepath"] and "architecture" in each]
print(blas[0]["architecture"] if blas else "", OPENBLAS_CORE_TYPES.get(torch.backends.cpu.get_cpu_capability(), ""), sep=",")
print(os.environ.get("OPENBLAS_CORETYPE"))
"""


@pytest.mark.parametrize("chosen", [None, "Nehalem"])
def test_faiss_has_the_matrix_products_of_the_processor(chosen: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {} if chosen is None else {"OPENBLAS_CORETYPE": chosen}
    run = subprocess.run([sys.executable, "-c", LOADED], env=environment, capture_output=True, text=True, check=True)
    types, environment_value = run.stdout.split()
    core_type, expected = types.split(",")
    if not (core_type and expected):
        pytest.skip("this faiss has no OpenBLAS, or this is another kind of processor")
    assert core_type == (chosen or expected)
    assert environment_value == str(chosen)
