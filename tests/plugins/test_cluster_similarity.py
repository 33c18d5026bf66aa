from __future__ import annotations

import pytest
import torch

from clip_negatives import block_sampling
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives_plugins.cluster_similarity.reliable import ReliableExchanges
from clip_negatives_plugins.cluster_similarity.sampler import ClusterSimilarity
from clip_negatives_plugins.cluster_similarity.side import Side
from tests.conftest import make_clusters

pytestmark = pytest.mark.keeps_global_rng


def reliable(sampler: ClusterSimilarity, images: list[int], texts: list[int]) -> torch.Tensor:
    return sampler.reliable.between(torch.tensor(images)[:, None], torch.tensor(texts)[None, :])


@pytest.mark.parametrize("options", [{}, {"image_quantile": 0.5, "text_quantile": 0.5}, {"image_threshold": 0.3}])
def test_every_image_has_a_reliable_pair_in_its_step(options: dict[str, float]) -> None:
    sampler = ClusterSimilarity(SamplingContext(240, 8, clusters=make_clusters()), **options)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert reliable(sampler, batch, batch).any(dim=1).all()


def two_clusters(n: int, small: int) -> Clusters:
    """Return a cluster of n - small samples and one of `small` samples, in both modalities."""
    labels = torch.zeros(n, dtype=torch.int64)
    labels[:small] = 1
    clustering = Clustering(labels, torch.eye(2))
    table = centroid_similarity(clustering.centroids)
    return Clusters(clustering, clustering, table, table)


def test_every_step_gets_a_sample_of_the_small_cluster() -> None:
    """With 10 samples of one cluster, 90 of another and 10 steps, each step needs one of the 10."""
    sampler = ClusterSimilarity(SamplingContext(100, 10, clusters=two_clusters(100, 10)))
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert sum(index < 10 for index in batch) == 1


def test_repair_moves_samples() -> None:
    sampler = ClusterSimilarity(SamplingContext(40, 10, clusters=two_clusters(40, 8)))
    unrepaired = torch.arange(40).view(4, 10)  # the eight of the small cluster are all in the first step
    repaired = sampler._repair(unrepaired.clone(), torch.empty(0, dtype=torch.int64), epoch_generator(0, 0))
    assert sorted(repaired.flatten().tolist()) == list(range(40))
    for row in repaired.tolist():
        assert reliable(sampler, row, row).any(dim=1).all()


def test_data_without_any_reliable_pair() -> None:
    with pytest.raises(InputError, match=r"40 samples have no .* within the whole data set .*Raise image_quantile"):
        ClusterSimilarity(SamplingContext(40, 10, clusters=two_clusters(40, 0)))


def test_steps_that_cannot_be_repaired() -> None:
    """Two samples of the small cluster cannot serve ten steps."""
    sampler = ClusterSimilarity(SamplingContext(100, 10, clusters=two_clusters(100, 2)))
    with pytest.raises(InputError, match="a step of 10 samples"):
        list(sampler)


def test_clusters_are_spread_evenly_over_steps() -> None:
    clusters = make_clusters(960)
    sampler = ClusterSimilarity(SamplingContext(960, 96, clusters=clusters))
    counts = torch.stack([clusters.image.labels[torch.tensor(batch)].bincount(minlength=12) for batch in sampler])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 2


def test_ranks_get_all_kinds() -> None:
    clusters = make_clusters(960)
    shards = [ClusterSimilarity(SamplingContext(960, 48, rank=rank, world_size=2, clusters=clusters)) for rank in (0, 1)]
    for shard in shards:
        seen = torch.cat([torch.tensor(batch) for batch in shard])
        assert len(clusters.image.labels[seen].unique()) == 12


@pytest.mark.parametrize("per_image", [1, 7])
def test_pairs_are_reliable_and_uniform(per_image: int) -> None:
    sampler = ClusterSimilarity(SamplingContext(240, 8, clusters=make_clusters()))
    drawn = sampler.incorrect_pairs(per_image, epoch_generator(0, 0))
    assert sampler.reliable.between(drawn.image_index, drawn.text_index).all()
    assert torch.equal(drawn.image_index.bincount(minlength=240), torch.full((240,), per_image))
    # Over many draws every reliable text of an image is drawn about equally often.
    allowed = reliable(sampler, [0], list(range(240)))[0]
    draws = torch.zeros(240)
    for seed in range(200):
        pairs = sampler.incorrect_pairs(5, epoch_generator(seed, 1))
        draws[pairs.text_index[pairs.image_index == 0]] += 1
    assert not draws[~allowed].any()
    expected = 200 * 5 / int(allowed.sum())
    assert abs(draws[allowed].mean() - expected) < 1e-3
    assert float(((draws[allowed] - expected) ** 2 / expected).sum()) < 1.5 * int(allowed.sum())


def test_more_pairs_than_there_are() -> None:
    sampler = ClusterSimilarity(SamplingContext(100, 10, clusters=two_clusters(100, 10)))
    drawn = sampler.incorrect_pairs(20, epoch_generator(0, 0))
    counts = drawn.image_index.bincount(minlength=100)
    assert counts[:10].tolist() == [20] * 10
    assert counts[10:].tolist() == [10] * 90
    with pytest.raises(InputError, match="per_image must be at least 1"):
        sampler.incorrect_pairs(0, epoch_generator(0, 0))


def test_needs_clusters_of_these_data() -> None:
    with pytest.raises(InputError, match="clip-negatives prepare"):
        ClusterSimilarity(SamplingContext(240, 8))
    with pytest.raises(InputError, match="of the 200 training samples, but these clusters have 240"):
        ClusterSimilarity(SamplingContext(200, 8, clusters=make_clusters(240)))


def test_blocks_keep_the_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each block, every image has a reliable pair in its step, and clusters are spread evenly."""
    monkeypatch.setattr(block_sampling, "MIN_BLOCK_SAMPLES", 1024)
    clusters = make_clusters(5000)
    sampler = ClusterSimilarity(SamplingContext(5000, 16, clusters=clusters), image_quantile=0.5, text_quantile=0.5)
    assert sampler.n_blocks == 4
    shuffled = torch.randperm(5000, generator=epoch_generator(0, 0))[:4992].view(-1, 16)
    labels = clusters.image.labels
    variances = []
    for batches in (torch.tensor(list(sampler)), shuffled):
        counts = torch.stack([labels[batch].bincount(minlength=12) for batch in batches])
        variances.append(float(counts.double().var(dim=0).mean()))
    assert variances[0] < 0.5 * variances[1]
    for batch in sampler:
        assert reliable(sampler, batch, batch).any(dim=1).all()


@pytest.mark.parametrize("quantile", [0.05, 0.2, 0.5])
def test_samples_without_a_partner_are_found(quantile: float) -> None:
    """The expected values come from all pairs of samples."""
    clusters = make_clusters(120)
    tables = ReliabilityGate(image_quantile=quantile, text_quantile=quantile).tables(clusters)
    labels = clusters.image.labels, clusters.text.labels
    exchanges = ReliableExchanges(*(Side.of(label, table, None) for label, table in zip(labels, tables, strict=True)))
    image, text = (table[label][:, label] for label, table in zip(labels, tables, strict=True))
    every = torch.arange(120)
    assert torch.equal(exchanges.between(every[:, None], every), image & text)
    for side, allowed, label in zip((exchanges.image, exchanges.text), (image, text), labels, strict=True):
        assert torch.equal(side.excluded()[label], (~allowed).sum(dim=1))
    isolated = (~(image & text).any(dim=1)).nonzero().flatten()
    assert torch.equal(exchanges.without_partner(), isolated)
    assert bool(isolated.numel()) == (quantile < 0.5)
