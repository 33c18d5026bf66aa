from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.errors import InputError
from clip_negatives_plugins.kmeans.clusterer import KMeans, _without_empty
from clip_negatives_plugins.kmeans.lloyd import Assignment

pytestmark = pytest.mark.keeps_global_rng


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(n: int = 300, dim: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=generator(7)), dim=1)


@pytest.mark.parametrize("spherical", [True, False])
def test_finds_blobs(spherical: bool) -> None:
    centres = torch.eye(5, 6)
    truth = torch.arange(5).repeat_interleave(40)
    points = F.normalize(centres[truth] + 0.05 * torch.randn(200, 6, generator=generator()), dim=1)
    found = KMeans(n_clusters=5, n_redo=5, spherical=spherical).fit(points, generator=generator())
    pairs = {(int(a), int(b)) for a, b in zip(truth, found.labels, strict=True)}
    assert len(pairs) == 5


@pytest.mark.parametrize("k", [1, 2, 17, 299, 300])
def test_no_cluster_is_empty(k: int) -> None:
    found = KMeans(n_clusters=k, n_iter=2).fit(features(), generator=generator())
    assert found.labels.dtype == torch.int64
    assert found.labels.shape == (300,)
    assert found.centroids.shape == (k, 6)
    assert int(found.sizes().min()) >= 1


def test_no_cluster_is_empty_among_duplicates() -> None:
    """Ninety copies of one point and ten others, in ten clusters: faiss alone leaves some empty."""
    points = torch.cat([features(1).repeat(90, 1), features(40)[:10]])
    found = KMeans(n_clusters=10).fit(points, generator=generator())
    assert int(found.sizes().min()) >= 1


def test_nothing_is_sorted_where_no_cluster_is_empty() -> None:
    class Refuses(torch.Tensor):
        def argsort(self, *given: object, **how: object) -> torch.Tensor:
            raise AssertionError

    labels = torch.arange(10)
    found = _without_empty(torch.eye(10), Assignment(labels, torch.zeros(10).as_subclass(Refuses)), torch.eye(10), True)
    assert torch.equal(found.labels, labels)


def test_too_few_different_samples() -> None:
    with pytest.raises(InputError, match=r"3 different features, too few for 4 clusters.*n_clusters=3"):
        KMeans(n_clusters=4).fit(features(3).repeat(10, 1), generator=generator())


def test_equal_samples_are_not_to_be_put_into_one_cluster() -> None:
    with pytest.raises(InputError, match="All samples have the same features") as raised:
        KMeans().fit(features(1).repeat(30, 1), generator=generator())
    assert "n_clusters" not in str(raised.value)


def test_samples_are_in_the_nearest_cluster() -> None:
    points = features()
    found = KMeans(n_clusters=20).fit(points, generator=generator())
    similarity = points @ found.centroids.T
    assert torch.equal(found.labels, similarity.argmax(1))
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(20))


def test_seeds() -> None:
    points = features()
    first = KMeans(n_clusters=20).fit(points, generator=generator())
    assert torch.equal(first.labels, KMeans(n_clusters=20).fit(points, generator=generator()).labels)
    assert not torch.equal(first.labels, KMeans(n_clusters=20).fit(points, generator=generator(1)).labels)
    fixed = KMeans(n_clusters=20, seed=5)
    one, other = (fixed.fit(points, generator=generator(s)).labels for s in (0, 1))
    assert torch.equal(one, other)


def test_half_precision_and_the_cap_of_training_samples() -> None:
    found = KMeans(n_clusters=10, max_samples_per_cluster=5).fit(features().half(), generator=generator())
    assert found.centroids.dtype == torch.float32
    assert len(found.labels) == 300


@pytest.mark.parametrize("options", [{"n_clusters": 0}, {"n_iter": 0}, {"n_redo": -1}, {"max_samples_per_cluster": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        KMeans(**options)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3), r"shape \(N, D\), got \(3,\)"),
        (torch.zeros(0, 4), r"\(0, 4\)"),
        (torch.zeros(4, 4, dtype=torch.int64), "torch.int64"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "first in row 1"),
        (torch.tensor([[float("inf"), 1.0]]), "first in row 0"),
    ],
)
def test_bad_features(bad: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        KMeans(n_clusters=1).fit(bad, generator=generator())


def test_more_clusters_than_samples() -> None:
    with pytest.raises(InputError, match=r"n_clusters=11 is more than the number of samples \(10\)"):
        KMeans(n_clusters=11).fit(features(10), generator=generator())
