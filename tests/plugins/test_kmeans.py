from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering
from clip_negatives.testing import parametrize_with_checks
from clip_negatives_plugins.kmeans import clusterer, engines, levels
from clip_negatives_plugins.kmeans.balance import balance
from clip_negatives_plugins.kmeans.clusterer import KMeans, _fill_empty
from clip_negatives_plugins.kmeans.engines import FaissEngine
from clip_negatives_plugins.kmeans.levels import apportion
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
    _fill_empty(torch.eye(10), Assignment(labels, torch.zeros(10).as_subclass(Refuses)), torch.eye(10), True)
    assert torch.equal(labels, torch.arange(10))


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


@pytest.mark.parametrize("n_levels", [1, 2])
def test_centroids_of_as_many_training_rows_have_unit_length(n_levels: int) -> None:
    points = features(40) * torch.linspace(0.5, 3, 40)[:, None]
    found = KMeans(n_clusters=10, max_samples_per_cluster=1, levels=n_levels).fit(points, generator=generator())
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(10))
    if n_levels == 1:
        nearest = (F.normalize(points, dim=1) @ found.centroids.T).argmax(1)
        assert torch.equal(found.labels, nearest)


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


@pytest.mark.parametrize(
    "options",
    [
        {"n_clusters": 0},
        {"n_iter": 0},
        {"n_redo": -1},
        {"max_samples_per_cluster": 0},
        {"max_share": 1.5},
        {"levels": 3},
    ],
)
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


def with_options(**options: object) -> Callable[..., KMeans]:
    def kmeans(n_clusters: int | None = None) -> KMeans:
        return KMeans(n_clusters=n_clusters, **options)

    return kmeans


@parametrize_with_checks("clusterer", with_options(levels=2), with_options(max_share=0.1), with_options(spherical=False))
def test_options_conform(plugin: Any, check: Any) -> None:
    check(plugin)


def mean_cosine(points: torch.Tensor, found: Clustering) -> float:
    return float((points * F.normalize(found.centroids, dim=1)[found.labels]).sum(1).mean())


def test_a_sample_trains_centroids_that_fit_nearly_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, and 8 of 100 rows a cluster for the centroids."""
    points = blobs(2000, 20)
    whole = KMeans(n_clusters=20, seed=0).fit(points, generator=generator())
    for module in (clusterer, engines, levels):
        monkeypatch.setattr(module, "BLOCK", 64)
    trained: list[int] = []
    real = FaissEngine.centroids

    def watched(self: FaissEngine, sample: torch.Tensor, k: int, seed: int) -> torch.Tensor:
        trained.append(len(sample))
        return real(self, sample, k, seed)

    monkeypatch.setattr(FaissEngine, "centroids", watched)
    found = KMeans(n_clusters=20, seed=0, max_samples_per_cluster=8).fit(points, generator=generator())
    assert trained == [160]
    assert torch.equal(found.labels, (points @ found.centroids.T).argmax(1))
    assert mean_cosine(points, found) > mean_cosine(points, whole) - 0.02


def test_training_rows_are_spread_over_all_rows_and_differ() -> None:
    rows = clusterer._training_rows(1003, 100, seed=3)
    assert isinstance(rows, torch.Tensor)
    assert rows.diff().min() > 0
    assert 0 <= int(rows[0]) < 11
    assert 992 <= int(rows[-1]) < 1003
    assert not torch.equal(rows, clusterer._training_rows(1003, 100, seed=4))


def blobs(n: int, k: int, noise: float = 0.05) -> torch.Tensor:
    centres = F.normalize(torch.randn(k, 16, generator=generator(5)), dim=1)
    points = centres[torch.randint(k, (n,), generator=generator(6))] + noise * torch.randn(n, 16, generator=generator(7))
    return F.normalize(points, dim=1)


@pytest.mark.parametrize("k", [1, 2, 5, 30, 119, 120])
def test_two_levels_give_exactly_k_clusters_and_the_nearest_of_a_cell(k: int) -> None:
    points = blobs(120, 12)
    found = KMeans(n_clusters=k, levels=2).fit(points, generator=generator())
    assert found.centroids.shape == (k, 16)
    assert int(found.sizes().min()) >= 1
    assert int(found.sizes().sum()) == 120


def test_two_levels_fit_nearly_as_well_as_one() -> None:
    points = blobs(3000, 40, noise=0.15)
    one, two = (KMeans(n_clusters=60, levels=number).fit(points, generator=generator()) for number in (1, 2))
    assert mean_cosine(points, two) > mean_cosine(points, one) - 0.05


def test_too_few_different_samples_for_two_levels() -> None:
    with pytest.raises(InputError, match=r"3 different features, too few for 4 clusters.*n_clusters=3"):
        KMeans(n_clusters=4, levels=2).fit(features(3).repeat(10, 1), generator=generator())


def test_clusters_of_cells_are_in_proportion() -> None:
    for sizes in ([60, 30, 9, 1], [1, 1, 1, 97], [25] * 4, [3, 1]):
        for k in range(len(sizes), min(sum(sizes), 40) + 1):
            parts = apportion(torch.tensor(sizes), k)
            assert int(parts.sum()) == k
            assert (parts >= 1).all()
            assert (parts <= torch.tensor(sizes)).all()


@pytest.mark.parametrize("n_levels", [1, 2])
@pytest.mark.parametrize("share", [0.02, 0.03, 1 / 60])
def test_no_cluster_holds_more_than_its_share(n_levels: int, share: float) -> None:
    """Nine of ten samples lie in one blob."""
    points = torch.cat([blobs(540, 1, noise=0.1), blobs(60, 30)])
    found = KMeans(n_clusters=60, max_share=share, levels=n_levels).fit(points, generator=generator())
    assert found.sizes().max() <= share * 600 + 1e-9
    assert found.sizes().min() >= 1
    assert found.sizes().sum() == 600
    free = KMeans(n_clusters=60, levels=n_levels).fit(points, generator=generator())
    assert free.sizes().max() > share * 600  # otherwise nothing had to move


def test_the_farthest_move_to_the_nearest_cluster_with_room() -> None:
    points = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.3], [1.0, 0.4], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    centroids, engine = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), FaissEngine(1, 1, spherical=True)
    found = engine.assign(points, centroids)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 2]
    balance(engine, points, found, centroids, 2)
    # Both that leave are nearer to the second cluster, which has room for one: it takes the nearer of the two.
    assert found.labels.tolist() == [0, 0, 2, 1, 1, 2]
    torch.testing.assert_close(found.far, -(points * centroids[found.labels]).sum(1))


def test_max_share_that_leaves_too_little_room() -> None:
    with pytest.raises(InputError, match=r"3 clusters with max_share=0.3 hold only 90 of 100 samples.*max_share=0.34"):
        KMeans(n_clusters=3, max_share=0.3).check_samples(100)
    with pytest.raises(InputError, match=r"Use max_share=0\.3333 or more\.$"):  # no number of clusters of 0 samples is enough
        KMeans(n_clusters=3, max_share=0.3).check_samples(3)
    KMeans(n_clusters=3, max_share=0.34).check_samples(100)
    KMeans(n_clusters=100, max_share=0.01).check_samples(100)
