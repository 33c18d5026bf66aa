"""Very many clusters, that list their nearest: lists of all are what tables of all are, short ones go by the rule."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives import NegativesClipLoss
from clip_negatives.clustering import similarity
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import nearest_similarity, pair_similarity
from clip_negatives.errors import InputError, UnsupportedError
from clip_negatives.interfaces import Clustering, Clusters, LossTerms, LossWeighting, SamplingContext
from clip_negatives.losses.functional import Candidates, pair_log_weights, weighted_info_nce
from clip_negatives.losses.sparse_tables import look_up, with_dense_tables
from clip_negatives.metrics import FalseNegatives
from clip_negatives.sampling import epoch_generator
from clip_negatives.step import BatchSamples
from clip_negatives_plugins.cluster_similarity.sampler import ClusterSimilarity
from clip_negatives_plugins.paper_variants.gates import Gate, Gate2
from clip_negatives_plugins.random_reduction.weighting import RandomReduction
from clip_negatives_plugins.weighted_infonce.weighting import WeightedInfoNCE
from tests.conftest import make_clusters
from tests.info_nce import features

B, D = 24, 8


def listing(clusters: Clusters, m: int | None = None) -> Clusters:
    """Return the clusters with lists of m, or of all, in the place of tables."""
    nearest = {
        f"{name}_nearest": nearest_similarity(side.centroids, m or side.n_clusters)
        for name, side in (("image", clusters.image), ("text", clusters.text))
    }
    return dataclasses.replace(clusters, image_similarity=torch.empty(0, 0), text_similarity=torch.empty(0, 0), **nearest)


def _unit(n: int) -> tuple[Tensor, Tensor]:
    x, y = features(n, D, dtype=torch.float32)
    return x.detach(), y.detach()


def test_lists_and_the_mean_of_the_rest(clusters: Clusters) -> None:
    nearest, k = nearest_similarity(clusters.image.centroids, 5), clusters.image.n_clusters
    assert torch.equal(nearest.clusters[:, 0].long(), torch.arange(k))
    expected = clusters.image_similarity.sort(dim=1, descending=True).values
    torch.testing.assert_close(nearest.cosines, expected[:, :5])
    assert nearest.rest == pytest.approx(float(expected[:, 5:].mean()), abs=1e-6)


def test_many_clusters_get_lists(clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "DENSE_UP_TO", clusters.text.n_clusters)
    monkeypatch.setattr(similarity, "LISTED", 4)
    found = Clusters(clusters.image, clusters.text, **similarity.similarities(clusters.image, clusters.text))
    assert found.image_similarity.shape == (0, 0)
    assert found.image_nearest is not None
    assert torch.equal(found.text_similarity, clusters.text_similarity)
    assert found.text_nearest is None


WEIGHTINGS = {
    "weighs": WeightedInfoNCE(),
    "removes": WeightedInfoNCE(remove=True, image_quantile=0.7, text_threshold=0.5),
    "gate": Gate(image_quantile=0.7),
    "gate2": Gate2(image_quantile=0.7, text_quantile=0.8),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
@pytest.mark.parametrize("backend", ["torch", "chunked", "triton"])
def test_lists_of_all_are_tables_of_all(clusters: Clusters, backend: str, weighting: LossWeighting) -> None:
    dense, listed = weighting(clusters), weighting(listing(clusters))
    x, y = _unit(B)
    index = torch.randperm(clusters.n_samples, generator=torch.Generator().manual_seed(1))[:B]
    expected, found = (weighted_info_nce(x, y, 10.0, terms=terms.take(index), backend=backend) for terms in (dense, listed))
    torch.testing.assert_close(found, expected)
    mine = slice(8, 16)
    expected, found = (
        weighted_info_nce(
            x[mine],
            y[mine],
            10.0,
            terms=terms.take(index[mine]),
            candidates=Candidates(x, y, terms.take(index), 8),
            backend=backend,
        )
        for terms in (dense, listed)
    )
    torch.testing.assert_close(found, expected)
    pairs = index, index.flip(0)
    torch.testing.assert_close(pair_log_weights(listed, *pairs), pair_log_weights(dense, *pairs))
    figures = []
    for terms in (dense, listed):
        metric = FalseNegatives()
        metric.update(index % 5, terms.take(index), torch.arange(0, B, 2))
        figures.append({name: float(value) for name, value in metric.compute().items()})
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)


def test_short_lists_by_a_double_loop(clusters: Clusters) -> None:
    """The entry of whoever lists the other, else the mean of the rest, within the loss and by pairs."""
    short = listing(clusters, 3)
    terms = WeightedInfoNCE(beta=2.0, text_beta=0.5, normalize=False)(short)
    x, y = (side.detach() for side in features(B, D))
    index = torch.arange(B) * 7

    def similar(side: Clustering, nearest: similarity.NearestClusters, i: int, j: int) -> float:
        a, b = int(side.labels[index[i]]), int(side.labels[index[j]])
        for one, other in ((a, b), (b, a)):
            if other in nearest.clusters[one].tolist():
                return float(nearest.cosines[one, nearest.clusters[one].tolist().index(other)])
        return nearest.rest

    b = torch.zeros(B, B, dtype=torch.float64)
    for i in range(B):
        for j in range(B):
            if i != j:
                b[i, j] = -2.0 * similar(short.image, short.image_nearest, i, j)
                b[i, j] += -0.5 * similar(short.text, short.text_nearest, i, j)
    logits = 5.0 * x @ y.T
    expected = sum(F.cross_entropy(side + b, torch.arange(B)) for side in (logits, logits.T)) / 2
    assert float(weighted_info_nce(x, y, 5.0, terms=terms.take(index)).detach()) == pytest.approx(
        float(expected.detach()), abs=1e-6
    )
    rows, columns = torch.where(~torch.eye(B, dtype=torch.bool))
    torch.testing.assert_close(pair_log_weights(terms, index[rows], index[columns]), b[rows, columns].float())


def test_unlabelled_samples_of_a_stream_count_as_they_are(clusters: Clusters) -> None:
    """Whether tables are of all or of lists, a pair with a sample without a label has weight 1."""
    x, y = _unit(B)
    labels = torch.stack([clusters.image.labels[:B], clusters.text.labels[:B]], dim=1)
    losses = []
    for some in (clusters, listing(clusters)):
        terms = WeightedInfoNCE(normalize=False)(some).for_stream()
        assert terms.by_label
        assert terms.n_samples is None
        loss, index = NegativesClipLoss(terms=terms), torch.arange(B)
        known = weighted_info_nce(x, y, 10.0, terms=WeightedInfoNCE(normalize=False)(clusters).take(index))
        torch.testing.assert_close(loss(x, y, torch.tensor(10.0), samples=BatchSamples(labels=labels)), known)
        losses.append(
            float(loss(x, y, torch.tensor(10.0), samples=BatchSamples(labels=labels.index_fill(0, torch.tensor([3, 5]), -1))))
        )
        with pytest.raises(InputError, match="the batch has no labels"):
            loss(x, y, torch.tensor(10.0), samples=BatchSamples(ids=index))
    b = -clusters.image_similarity[labels[:, 0]][:, labels[:, 0]] - clusters.text_similarity[labels[:, 1]][:, labels[:, 1]]
    for sample in (3, 5):
        b[sample] = b[:, sample] = 0
    b.fill_diagonal_(0)
    logits = 10.0 * x @ y.T
    expected = sum(F.cross_entropy(side + b, torch.arange(B)) for side in (logits, logits.T)) / 2
    assert losses == pytest.approx([float(expected)] * 2, abs=1e-5)


def test_what_lists_do_not_serve(clusters: Clusters) -> None:
    short = listing(clusters, 3)
    with pytest.raises(InputError, match="Use cluster_similarity or weighted_infonce, or prepare with fewer clusters"):
        ReliabilityGate(image_threshold=0.5).image_table(dataclasses.replace(short, image_nearest=None))
    with pytest.raises(InputError, match="a report needs a table of all pairs of text clusters"):
        short.similarity_of("text", "a report")
    with pytest.raises(InputError, match="cannot be counted with more than"):
        RandomReduction()(short)
    with pytest.raises(InputError, match="needs image_labels"):
        weighted_info_nce(*_unit(B), 10.0, terms=WeightedInfoNCE()(short).for_stream())
    with pytest.raises(UnsupportedError, match="it has groups for each sample"):
        LossTerms(groups=torch.arange(4)).for_stream()


@pytest.mark.parametrize("gate", [{"image_quantile": 0.8}, {"image_threshold": 0.3}, {"image_quantile": 1.0}, {}])
def test_reliable_clusters_of_lists(clusters: Clusters, gate: dict[str, float]) -> None:
    """Lists of all say what tables of all say; short ones let through what is not listed."""
    k = clusters.image.n_clusters
    every = torch.arange(k)[:, None], torch.arange(k)[None, :]
    image_table = ReliabilityGate(**gate).image_table
    dense, whole, short = image_table(clusters), listing(clusters), listing(clusters, 4)
    assert torch.equal(look_up(image_table(whole), whole.image_nearest.clusters, *every), dense)
    found = look_up(image_table(short), short.image_nearest.clusters, *every)
    assert not found.diagonal().any()
    listed = torch.zeros(k, k, dtype=torch.bool).scatter_(1, short.image_nearest.clusters.long(), True)
    assert found[~(listed | listed.T)].all()
    if "image_threshold" in gate:
        assert torch.equal(found[listed], dense[listed])


def test_sampler_composes_the_same_batches(clusters: Clusters) -> None:
    contexts = [SamplingContext(clusters.n_samples, 16, clusters=some) for some in (clusters, listing(clusters))]
    samplers = [ClusterSimilarity(context, image_quantile=0.7, text_quantile=0.8) for context in contexts]
    assert list(samplers[0]) == list(samplers[1])
    pairs = [sampler.incorrect_pairs(2, epoch_generator(0, 0)) for sampler in samplers]
    assert torch.equal(pairs[0].text_index, pairs[1].text_index)


def test_samples_that_no_one_may_exchange_with_are_refused(clusters: Clusters) -> None:
    """Two clusters on each side that list each other, and a threshold under which nothing is: no pair is reliable."""
    few = make_clusters(n=20, k_image=2, k_text=2)
    context = SamplingContext(20, 4, clusters=listing(few))
    with pytest.raises(InputError, match="the whole data set"):
        ClusterSimilarity(context, image_threshold=-1.0, image_quantile=None)


def test_seventeen_thousand_clusters() -> None:
    """As many as have no table: sampler, weights and loss work, and hold nothing of the size of K times K."""
    k, n, m = 17_000, 34_000, similarity.LISTED
    generator = torch.Generator().manual_seed(0)
    sides = []
    for _ in range(2):
        centroids = F.normalize(torch.randn(k, 16, generator=generator), dim=1)
        labels = torch.cat([torch.arange(k), torch.randint(k, (n - k,), generator=generator)])
        sides.append(Clustering(labels[torch.randperm(n, generator=generator)], centroids))
    clusters = Clusters(sides[0], sides[1], **similarity.similarities(*sides))
    assert clusters.image_nearest.clusters.shape == (k, m)
    sampler = ClusterSimilarity(SamplingContext(n, 64, clusters=clusters))
    batches = list(sampler)
    assert len({index for batch in batches for index in batch}) == n // 64 * 64
    terms = WeightedInfoNCE(remove=True)(clusters)
    assert terms.image_table.shape == (k, m + 1)
    index = torch.tensor(batches[0])
    x, y = _unit(64)
    loss = NegativesClipLoss(terms=terms)(x, y, torch.tensor(10.0), samples=BatchSamples(ids=index))
    assert math.isfinite(float(loss))
    local, _ = with_dense_tables(terms.take(index), None)
    assert local.image_table.shape == (64, 64)
    assert not local.sparse
    assert bool((local.image_table.diagonal() == -math.inf).all())
    left, right = index[:32], index[32:]
    cosines = pair_similarity(clusters.image, left, right)
    a, b = (clusters.image.centroids[clusters.image.labels[side]] for side in (left, right))
    torch.testing.assert_close(cosines, (a * b).sum(dim=1), atol=1e-5, rtol=0)
