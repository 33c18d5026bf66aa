"""The most similar other clusters against a dense table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.clustering import neighbours as module
from clip_negatives.clustering.neighbours import nearest_clusters
from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.errors import InputError

pytestmark = pytest.mark.keeps_global_rng


def centroids(k: int = 300, dim: int = 16, groups: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(groups, dim, generator=generator)
    return means[torch.randint(groups, (k,), generator=generator)] + 0.4 * torch.randn(k, dim, generator=generator)


@pytest.mark.parametrize("m", [1, 7, 299])
def test_equals_the_dense_table(monkeypatch: pytest.MonkeyPatch, m: int) -> None:
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 70)
    indices, cosines = nearest_clusters(centroids(), m)
    table = centroid_similarity(centroids()).fill_diagonal_(-2)
    assert (indices.dtype, cosines.dtype) == (torch.int32, torch.float32)
    assert torch.equal(indices.long(), table.topk(m, dim=1).indices)
    torch.testing.assert_close(cosines, table.topk(m, dim=1).values)


def test_equal_clusters_come_by_number_and_never_itself() -> None:
    points = torch.cat([torch.eye(4)[:1].repeat(5, 1), torch.eye(4)[1:]])
    indices, cosines = nearest_clusters(points, 3)
    others = [[j for j in range(5) if j != i] for i in range(5)]
    assert all(set(found) <= set(rest) for found, rest in zip(indices[:5].tolist(), others, strict=True))
    assert indices[:5].diff(dim=1).gt(0).all()
    assert cosines[:5].eq(1).all()
    assert not (indices == torch.arange(8)[:, None]).any()
    assert torch.equal(indices, nearest_clusters(points, 3)[0])


def test_an_inverted_file_finds_nearly_all_of_them() -> None:
    points = F.normalize(centroids(5000, 32, 300), dim=1)
    exact, inexact = (nearest_clusters(points, 10, exact=how)[0] for how in (True, False))
    found = (exact[:, :, None] == inexact[:, None, :]).any(2).float().mean()
    assert found > 0.97
    assert torch.equal(inexact, nearest_clusters(points, 10, exact=False)[0])
    assert not (inexact == torch.arange(5000)[:, None]).any()


def test_an_inverted_file_is_taken_for_many_and_looks_on_where_cells_hold_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_CLUSTERS", 299)
    asked = []
    real = module._inverted_file
    monkeypatch.setattr(module, "_inverted_file", lambda unit: asked.append(len(unit)) or real(unit))
    indices, cosines = nearest_clusters(centroids(), 250)
    assert asked == [300]
    assert torch.equal(indices, nearest_clusters(centroids(), 250, exact=True)[0])
    assert cosines.isfinite().all()


@pytest.mark.parametrize(
    ("given", "m", "words"),
    [
        (torch.zeros(3), 1, r"\(K, D\), got \(3,\)"),
        (torch.eye(3), 3, r"m must be within 1 \.\. 2 for 3 clusters, got 3"),
        (torch.eye(3), 0, "got 0"),
        (torch.tensor([[1.0], [float("nan")]]), 1, "row 1"),
    ],
)
def test_refusals(given: torch.Tensor, m: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        nearest_clusters(given, m)
