from __future__ import annotations

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
