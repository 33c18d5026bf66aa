"""Each rival sampler composes the batches that its docstring describes; the conformance kit has the common checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.host import registry
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives_plugins.graph_batches.gcbs import edges_above
from clip_negatives_plugins.graph_batches.neighbours import frozen_vectors, ranked_neighbours
from tests.conftest import make_clusters

pytestmark = pytest.mark.keeps_global_rng

N, B = 240, 16
RIVALS = ["one_cluster", "cluster_stratified", "cluster_diverse", "b3", "gcbs", "hard_pairs"]


def make(spec: str, clusters: Clusters, batch_size: int = B, **more: int):
    context = SamplingContext(clusters.n_samples, batch_size, clusters=clusters, **more)
    return registry.create("negative_sampler", spec, context)


def one_cluster_share(sampler, clusters: Clusters) -> float:
    """Return how often two samples of a step share an image cluster, relative to two samples of the data."""
    labels = clusters.image.labels
    same = [float((labels[batch][:, None] == labels[batch]).float().sum() - len(batch)) for batch in map(torch.tensor, sampler)]
    of_all = float((labels[:, None] == labels).sum() - N) / (N * (N - 1))
    return float(np.mean(same)) / (B * (B - 1)) / of_all


def nearness(sampler, clusters: Clusters, by: str = "both") -> float:
    """Return the mean frozen similarity of two samples of a step, minus that of two samples of the data."""
    vectors = frozen_vectors(clusters, by)
    s = vectors @ vectors.T
    inside = [
        float((s[batch][:, batch].sum() - len(batch)) / (len(batch) * (len(batch) - 1))) for batch in map(torch.tensor, sampler)
    ]
    return float(np.mean(inside)) - float((s.sum() - N) / (N * (N - 1)))


def test_one_cluster_fills_steps_with_one(clusters: Clusters) -> None:
    assert one_cluster_share(make("one_cluster", clusters), clusters) > 5
    # Only steps in which a cluster ends are mixed: at most one for each of the 12 clusters.
    mixed = [batch for batch in make("one_cluster", clusters) if len(clusters.image.labels[batch].unique()) > 1]
    assert len(mixed) <= 12


def test_one_cluster_joins_small_clusters_with_the_nearest() -> None:
    """With many more clusters than steps, a step holds a random cluster and the clusters nearest to it."""
    n, step, kinds = 600, 60, 10
    labels = torch.arange(n) % 100  # 100 clusters of 6 samples, 10 for each kind: no cluster fills a step
    angles = torch.linspace(0, 1.2, 10) / 10 + torch.arange(kinds)[:, None]
    centroids = torch.stack([angles.flatten().cos(), angles.flatten().sin()], dim=1)
    side = Clustering(labels, centroids)
    table = centroid_similarity(centroids)
    sampler = make("one_cluster", Clusters(side, side, table, table), batch_size=step)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(n))
    assert all(len(batch) == step for batch in batches)
    clusters_of_a_step = [len(labels[batch].unique()) for batch in batches]
    assert clusters_of_a_step[0] <= 20
    # Two samples of a step are of one kind far more often than one time in ten.
    kind = labels // 10
    same = np.mean([float((kind[batch][:, None] == kind[batch]).double().mean()) for batch in batches])
    assert same > 0.5


def test_one_cluster_draws_anew(clusters: Clusters) -> None:
    sampler = make("one_cluster", clusters)
    first = [frozenset(batch) for batch in sampler]
    sampler.set_epoch(1)
    assert first != [frozenset(batch) for batch in sampler]


def test_stratified_steps_have_the_proportions_of_the_data(clusters: Clusters) -> None:
    sizes = clusters.image.sizes()
    for batch in make("cluster_stratified", clusters):
        counts = clusters.image.labels[batch].bincount(minlength=12)
        assert (counts >= sizes // 15).all()
        assert (counts <= -(-sizes // 15)).all()


def test_diverse_steps_are_less_alike_than_stratified_and_random_ones(clusters: Clusters) -> None:
    def mean(spec: str) -> float:
        return float(np.mean([nearness(make(spec, clusters, seed=seed), clusters, "image") for seed in range(8)]))

    diverse, stratified, random, one_cluster = (
        mean(name) for name in ("cluster_diverse", "cluster_stratified", "in_batch", "one_cluster")
    )
    assert diverse < stratified < random + 0.01 < one_cluster


@pytest.mark.parametrize("name", ["b3", "gcbs:quantile=0.95", "hard_pairs"])
def test_graphs_collect_what_is_near(name: str, clusters: Clusters) -> None:
    assert nearness(make(name, clusters), clusters) > nearness(make("in_batch", clusters), clusters) + 0.02


def test_neighbours_by_sorting(clusters: Clusters) -> None:
    features = clusters.image_features.clone()
    features[5] = features[9]  # a duplicate stands first, before or after the sample itself
    vectors = frozen_vectors(
        Clusters(**{**{f: getattr(clusters, f) for f in clusters.__slots__}, "image_features": features}), "image"
    )
    ranked = ranked_neighbours(vectors, 3, 6)
    for i in range(N):
        candidates = [j for j in range(N) if j != i]
        expected = sorted((float(vectors[i] @ vectors[j]) for j in candidates), reverse=True)[2:6]
        assert i not in ranked[i].tolist()
        assert [float(vectors[i] @ vectors[j]) for j in ranked[i]] == pytest.approx(expected, abs=1e-5)
    few = ranked_neighbours(vectors[:3], 1, 5)
    assert few.shape == (3, 5)
    assert (few[:, 2:] == -1).all()


def test_b3_joins_the_ranks_of_its_window(clusters: Clusters) -> None:
    sampler = make("b3:skip=4,window=6,community=2", clusters)
    allowed = ranked_neighbours(frozen_vectors(clusters, "both"), 5, 10)
    joined = 0
    for batch in sampler:
        chosen = set(batch)
        joined += sum(bool(chosen & set(allowed[i].tolist())) for i in batch)
    random = sum(bool(set(batch) & set(allowed[i].tolist())) for batch in make("in_batch", clusters) for i in batch)
    assert joined > 1.5 * random


def test_hard_pairs_pair(clusters: Clusters) -> None:
    near = ranked_neighbours(frozen_vectors(clusters, "both"), 1, 16)
    alone = sum(
        not any(j in near[i].tolist() or i in near[j].tolist() for j in batch if j != i)
        for batch in make("hard_pairs", clusters)
        for i in batch
    )
    assert alone < N / 10


def test_edges_are_the_share_of_pairs_over_the_quantile() -> None:
    clusters = make_clusters(500, 10, 8)
    vectors = frozen_vectors(clusters, "both")
    rows, columns = edges_above(vectors, 0.97)
    assert len(rows) / (500 * 499) == pytest.approx(0.03, abs=0.005)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(500, 500)).toarray()
    assert (graph == graph.T).all()
    assert (graph.diagonal() == 0).all()
    s = (vectors @ vectors.T).numpy()
    np.fill_diagonal(s, -1)
    assert s[graph == 0].max() <= s[graph == 1].min() + 1e-6


def test_gcbs_cuts_scipys_order_into_steps(clusters: Clusters) -> None:
    """The order has the small bandwidth of reverse Cuthill-McKee, and the steps are its stretches."""
    sampler = make("gcbs:quantile=0.97", clusters)
    rows, columns = edges_above(frozen_vectors(clusters, "both"), 0.97)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(N, N)).tocsr()

    def bandwidth(order: np.ndarray) -> int:
        place = np.empty(N, dtype=np.int64)
        place[order] = np.arange(N)
        return int(np.abs(place[rows] - place[columns]).max())

    order = sampler.order(torch.Generator().manual_seed(3))
    assert sorted(order.tolist()) == list(range(N))
    expected = bandwidth(reverse_cuthill_mckee(graph, symmetric_mode=True))
    random = bandwidth(np.random.default_rng(0).permutation(N))
    assert bandwidth(order.numpy()) < (expected + random) / 2
    batches = [frozenset(batch) for batch in sampler]
    generator = epoch_generator(0, 0)
    order = sampler.order(generator)
    start = int(torch.randint(N, (1,), generator=generator))
    assert set(batches) == {frozenset(part.tolist()) for part in order.roll(start)[: N // B * B].view(-1, B)}


def test_incorrect_pairs_of_every_sampler(clusters: Clusters) -> None:
    for name in RIVALS:
        pairs = make(name, clusters).incorrect_pairs(3, torch.Generator().manual_seed(0))
        assert len(pairs) > 0
        assert (pairs.image_index != pairs.text_index).all()
