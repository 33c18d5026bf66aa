"""`parallel_kmeans` on one process."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from clip_negatives.distributed.processes import ALONE
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering
from clip_negatives.testing import parametrize_with_checks
from clip_negatives_plugins.kmeans.clusterer import KMeans
from clip_negatives_plugins.parallel_kmeans import assignment, iterations, levels, start
from clip_negatives_plugins.parallel_kmeans.balance import balance
from clip_negatives_plugins.parallel_kmeans.clusterer import ParallelKMeans
from clip_negatives_plugins.parallel_kmeans.options import Start
from clip_negatives_plugins.parallel_kmeans.sums import Tally
from tests.plugins.parallel_kmeans.data import blobs, generator, titles

pytestmark = pytest.mark.keeps_global_rng

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scalable": {"init": "kmeans||"},
    "random": {"init": "random"},
    "batches": {"batch_size": 64, "n_iter": 40},
    "balanced": {"max_share": 0.1},
    "two": {"levels": 2},
    "two_balanced": {"levels": 2, "max_share": 0.1},
    "euclidean": {"spherical": False},
    "blocks": {"block_size": 37},
}


def job_of(points: torch.Tensor, block_size: int = 64) -> assignment.Job:
    return assignment.Job.of(levels.Rows(points, block_size), ALONE, torch.device("cpu"), True)


def made(way: str) -> Any:
    def parallel_kmeans(n_clusters: int | None = None) -> ParallelKMeans:
        return ParallelKMeans(n_clusters=n_clusters, **WAYS[way])

    return parallel_kmeans


@parametrize_with_checks("clusterer", *(made(way) for way in WAYS))
def test_conforms(plugin: Any, check: Any) -> None:
    check(plugin)


def fit(features: torch.Tensor, seed: int = 0, **options: Any) -> Clustering:
    return ParallelKMeans(**options).fit(features, generator=generator(seed))


def mean_similarity(points: torch.Tensor, found: Clustering) -> float:
    return float((points * found.centroids[found.labels]).sum(1).mean())


@pytest.mark.parametrize("way", ["plain", "scalable", "batches"])
def test_fits_as_well_as_kmeans(way: str) -> None:
    points = titles()
    theirs = KMeans(n_clusters=60, n_redo=3).fit(points, generator=generator())
    ours = fit(points, n_clusters=60, **WAYS[way])
    assert mean_similarity(points, ours) > mean_similarity(points, theirs) - 0.01
    assert mean_similarity(points, fit(points, n_clusters=60, levels=2)) > mean_similarity(points, theirs) - 0.05


@pytest.mark.parametrize("spherical", [True, False])
def test_finds_blobs_and_nearest_centroids_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch, spherical: bool) -> None:
    points = blobs(noise=0.1)
    truth = torch.randint(12, (600,), generator=generator(2))
    whole = fit(points, n_clusters=12, spherical=spherical)
    assert adjusted_rand_score(truth, whole.labels) > 0.99
    nearest = torch.cdist(points, whole.centroids).argmin(1)
    assert torch.equal(whole.labels, nearest)
    monkeypatch.setattr(assignment, "ROWS_AT_ONCE", (7, 7))
    pieces = fit(points, n_clusters=12, spherical=spherical, block_size=31)
    assert torch.equal(whole.labels, pieces.labels)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("k", [1, 2, 17, 119, 120])
def test_no_cluster_is_empty(way: str, k: int) -> None:
    options = {**WAYS[way], **({"max_share": 1.0} if k < 10 and "max_share" in WAYS[way] else {})}
    found = fit(blobs(120), n_clusters=k, **options)
    assert (found.labels.dtype, found.centroids.dtype) == (torch.int64, torch.float32)
    assert found.centroids.shape == (k, 16)
    assert found.sizes().min() >= 1
    assert found.labels.max() < k


def test_no_cluster_is_empty_among_duplicates() -> None:
    """Ninety copies of one point and ten others, in ten clusters."""
    points = torch.cat([blobs(1).repeat(90, 1), blobs(40)[:10]])
    for options in WAYS.values():
        more = {"max_share": 0.2} if "max_share" in options else {}
        assert fit(points, n_clusters=10, **{**options, **more}).sizes().min() >= 1


@pytest.mark.parametrize("levels", [1, 2])
def test_too_few_different_samples(levels: int) -> None:
    points = blobs(3).repeat(10, 1)
    assert fit(points, n_clusters=3, levels=levels).sizes().tolist() == [10, 10, 10]
    with pytest.raises(InputError, match=r"3 different features, too few for 4 clusters.*n_clusters=3"):
        fit(points, n_clusters=4, levels=levels)
    with pytest.raises(InputError, match="All samples have the same features"):
        fit(points[:1].repeat(30, 1), levels=levels)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("share", [0.02, 0.03, 1 / 60])
def test_no_cluster_holds_more_than_its_share(levels: int, share: float) -> None:
    """Nine of ten samples lie in one blob."""
    crowd = F.normalize(blobs(1, noise=0) + 0.1 * torch.randn(540, 16, generator=generator()), dim=1)
    points = torch.cat([crowd, blobs(60)])
    found = fit(points, n_clusters=60, max_share=share, levels=levels, block_size=100)
    assert found.sizes().max() <= share * 600 + 1e-9
    assert found.sizes().min() >= 1
    assert found.sizes().sum() == 600
    free = fit(points, n_clusters=60, levels=levels)
    assert free.sizes().max() > share * 600  # else nothing was asked for


def test_who_moves_for_balance_is_farthest_and_goes_to_the_nearest_with_room() -> None:
    points = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.3], [1.0, 0.4], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    centroids = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    job = job_of(points, 4)
    found, tally = job.assign(centroids), Tally.empty(3, 2, torch.device("cpu"))
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 2]
    tally.add(job.grid.round(points), found.labels.long())
    balance(job, found, centroids, 2, tally)
    # Both that leave are nearer to the second, which has room for one: it takes the nearer of the two.
    assert found.labels.tolist() == [0, 0, 2, 1, 1, 2]
    torch.testing.assert_close(found.far, 1 - (points * centroids[found.labels.long()]).sum(1))
    torch.testing.assert_close(tally.sums.float(), torch.stack([points[found.labels == k].sum(0) for k in range(3)]))
    assert tally.counts.tolist() == [2, 2, 2]


@pytest.mark.parametrize("k", [1, 5, 30, 200])
def test_two_levels_give_exactly_k(k: int) -> None:
    assert fit(titles(), n_clusters=k, levels=2).sizes().shape == (k,)


def test_cells_that_are_read_again_and_again_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = titles()
    held = fit(points, n_clusters=50, levels=2, block_size=100)
    monkeypatch.setattr(levels, "CELL_BYTES", 0)
    read = fit(points, n_clusters=50, levels=2, block_size=100)
    assert torch.equal(held.labels, read.labels)
    assert torch.equal(held.centroids, read.centroids)


def test_shares_of_cells() -> None:
    for sizes in ([60, 30, 9, 1], [1, 1, 1, 97], [25] * 4, [3, 1]):
        for k in range(len(sizes), min(sum(sizes), 40) + 1):
            parts = levels.apportion(torch.tensor(sizes), k)
            assert int(parts.sum()) == k
            assert (parts >= 1).all()
            assert (parts <= torch.tensor(sizes)).all()


def test_batches_are_of_other_rows_until_all_were_seen() -> None:
    seen: list[torch.Tensor] = []

    run = iterations.KMeansRun.__new__(iterations.KMeansRun)
    clusterer = ParallelKMeans(batch_size=100)
    run.options, run.seed, run._order = clusterer, 3, None
    run.job = job_of(blobs(650))
    for iteration in range(7):
        pieces, last = run._batch(iteration)
        seen += [piece for piece in pieces if isinstance(piece, torch.Tensor)]
        assert last == (iteration == 6)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(650))
    assert not torch.equal(seen[0], run._batch(7)[0][0])


def test_seeds() -> None:
    points = blobs()
    first = fit(points, n_clusters=20)
    assert torch.equal(first.labels, fit(points, n_clusters=20).labels)
    assert not torch.equal(first.labels, fit(points, seed=1, n_clusters=20).labels)
    one, other = (ParallelKMeans(n_clusters=20, seed=5).fit(points, generator=generator(s)).labels for s in (0, 1))
    assert torch.equal(one, other)


def test_ends_when_nothing_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    real = assignment.Job.assign
    monkeypatch.setattr(assignment.Job, "assign", lambda *given, **how: passes.append(1) or real(*given, **how))
    fit(blobs(noise=0.05), n_clusters=12, n_iter=1000)
    assert len(passes) < 20
    passes.clear()
    fit(titles(), n_clusters=30, n_iter=6, tolerance=0.0)
    assert len(passes) == 7


def test_never_holds_more_than_blocks_and_some_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    read, scored = [], []
    real_read, real_best = levels.Rows.read, assignment._first_largest
    monkeypatch.setattr(levels.Rows, "read", lambda self, a, b: read.append(b - a) or real_read(self, a, b))
    monkeypatch.setattr(assignment, "ROWS_AT_ONCE", (16, 16))
    monkeypatch.setattr(assignment, "_first_largest", lambda scores: scored.append(len(scores)) or real_best(scores))
    fit(blobs(), n_clusters=12, block_size=64, init="kmeans||")
    assert max(read) == 64
    assert max(scored) == 16


@pytest.mark.parametrize("init", get_args(Start))
def test_starts_are_samples(init: str) -> None:
    points = blobs()
    found = fit(points, n_clusters=15, init=init, n_iter=1, tolerance=0.5)
    assert found.n_clusters == 15
    first = start.first_centroids(job_of(points), init, 15, 0)
    assert all((points == row).all(1).any() for row in first)
    assert len(first.unique(dim=0)) == 15


@pytest.mark.parametrize(
    "options",
    [
        {"n_clusters": 0},
        {"n_iter": 0},
        {"batch_size": 0},
        {"block_size": 0},
        {"max_share": 0.0},
        {"max_share": 1.5},
        {"levels": 3},
        {"tolerance": -0.1},
        {"init": "best"},
        {"seed": -1},
        {"device": "tpu"},
        {"device": "cuda:97"},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(InputError, match=rf"{name} of parallel_kmeans must be .*got '?{value}'?\.|cannot use device={value}\."):
        ParallelKMeans(**options)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3), r"shape \(N, D\), got \(3,\)"),
        (torch.zeros(0, 4), r"\(0, 4\)"),
        (torch.zeros(4, 4, dtype=torch.int64), "torch.int64"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "first in row 1"),
        (torch.tensor([[float("inf"), 1.0]]), "first in row 0"),
        (torch.tensor([[0.0, -float("inf")]]).half(), "first in row 0"),
    ],
)
def test_bad_features(bad: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit(bad, n_clusters=1, block_size=1)


def test_numbers_of_samples_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"n_clusters=11 is more than the number of samples \(10\)"):
        fit(blobs(10), n_clusters=11)
    with pytest.raises(InputError, match=r"3 clusters with max_share=0.3 hold only 90 of 100 samples.*max_share=0.34"):
        ParallelKMeans(n_clusters=3, max_share=0.3).check_samples(100)
    with pytest.raises(InputError, match=r"Use max_share=0\.3333 or more\.$"):  # no number of clusters of 0 samples is enough
        ParallelKMeans(n_clusters=3, max_share=0.3).check_samples(3)
    ParallelKMeans(n_clusters=3, max_share=0.34).check_samples(100)
    ParallelKMeans(n_clusters=100, max_share=0.01).check_samples(100)


def test_each_process_of_a_node_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"is_available": True, "device_count": 2, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    found = {}
    for rank in (None, "0", "1", "3"):
        monkeypatch.delenv("LOCAL_RANK", raising=False) if rank is None else monkeypatch.setenv("LOCAL_RANK", rank)
        found[rank] = [str(ParallelKMeans(device=device)._own_device()) for device in ("cuda", "cuda:1", "cpu")]
    assert [own for own, _, _ in found.values()] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert {tuple(named) for _, *named in found.values()} == {("cuda:1", "cpu")}
