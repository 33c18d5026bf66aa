from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.clustering import low_rank
from clip_negatives.clustering.low_rank import low_rank_factors
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import removed_share
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters
from clip_negatives.losses.functional import pair_log_weights, weighted_info_nce
from clip_negatives_plugins.in_batch.weighting import Uniform
from clip_negatives_plugins.random_reduction.weighting import RandomReduction
from clip_negatives_plugins.weighted_infonce.weighting import WeightedInfoNCE

pytestmark = pytest.mark.keeps_global_rng


def every_pair(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    grid = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    off = grid[grid[:, 0] != grid[:, 1]]
    return off[:, 0], off[:, 1]


def test_uniform_is_neutral(clusters: Clusters) -> None:
    assert Uniform()(clusters).neutral
    assert Uniform()(None).neutral


@pytest.mark.parametrize("text_beta", [0.0, 0.7])
def test_cluster_weights_by_a_loop(clusters: Clusters, text_beta: float) -> None:
    options = {"beta": 2.0, "text_beta": text_beta, "remove": True}
    terms = WeightedInfoNCE(**options, image_quantile=0.8, text_threshold=0.6)(clusters)
    image, text = ReliabilityGate(image_quantile=0.8, text_threshold=0.6).tables(clusters)
    rows, columns = every_pair(60)
    log_weights = pair_log_weights(terms, rows, columns)
    for i, j, value in zip(rows.tolist(), columns.tolist(), log_weights.tolist(), strict=True):
        a, b = clusters.image.labels[i], clusters.image.labels[j]
        c, d = clusters.text.labels[i], clusters.text.labels[j]
        if not (image[a, b] and text[c, d]):
            assert value == -math.inf
        else:
            expected = -2.0 * clusters.image_similarity[a, b] - text_beta * clusters.text_similarity[c, d]
            assert value == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("removed", [False, True])
def test_sample_weights_equal_the_dense_formula(clusters: Clusters, removed: bool) -> None:
    terms = WeightedInfoNCE(beta=1.5, text_beta=0.5, similarity="sample", remove=removed, rank=None)(clusters)
    rows, columns = every_pair(50)
    r = (clusters.image_features[rows] * clusters.image_features[columns]).sum(1)
    t = (clusters.text_features[rows] * clusters.text_features[columns]).sum(1)
    expected = -1.5 * r - 0.5 * t
    if removed:
        image, text = ReliabilityGate(image_quantile=0.95, text_quantile=0.95).tables(clusters)
        a, c = clusters.image.labels, clusters.text.labels
        expected = expected.masked_fill(~(image[a[rows], a[columns]] & text[c[rows], c[columns]]), -math.inf)
        assert expected.isinf().any()
    else:
        assert terms.image_table is None
        assert terms.text_labels is None
    torch.testing.assert_close(pair_log_weights(terms, rows, columns), expected)


def test_low_rank_keeps_the_most_of_the_inner_products(clusters: Clusters) -> None:
    """The truncated singular value decomposition is the best approximation; with all columns nothing is lost."""
    full = low_rank_factors([(1.5, clusters.image_features), (0.5, clusters.text_features)], None)
    u, s, vh = torch.linalg.svd(full.double(), full_matrices=False)
    for rank in (1, 3, full.shape[1] - 1):
        approximate = low_rank_factors([(1.5, clusters.image_features), (0.5, clusters.text_features)], rank).double()
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert approximate.shape == (len(full), rank)
        torch.testing.assert_close(approximate @ approximate.T, best @ best.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(low_rank_factors([(1.5, clusters.image_features), (0.5, clusters.text_features)], 10_000), full)


def test_low_rank_reads_by_blocks(clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven blocks give the same factors; directions from a part of the rows give nearly the same."""
    parts = [(1.0, clusters.image_features), (1.0, clusters.text_features)]
    whole = low_rank_factors(parts, 6)
    monkeypatch.setattr(low_rank, "ROWS", 101)
    by_blocks = low_rank_factors(parts, 6)
    assert torch.equal(low_rank_factors(parts, None), torch.cat([features.float() for _, features in parts], dim=1))
    exact = torch.cat([features for _, features in parts], dim=1)
    errors = [(result @ result.T - exact @ exact.T).norm() for result in (whole, by_blocks)]
    assert errors[0] <= errors[1] < 1.2 * errors[0]


def test_centred_factors_are_of_unit_norm_by_any_blocks(clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    centred = [features.double() - features.double().mean(0) for features in (clusters.image_features, clusters.text_features)]
    exact = sum(beta * (unit @ unit.T) for beta, unit in zip((1.5, 0.5), map(F.normalize, centred), strict=True))
    for rows in (low_rank.ROWS, 101):
        monkeypatch.setattr(low_rank, "ROWS", rows)
        factors = low_rank_factors([(1.5, clusters.image_features), (0.5, clusters.text_features)], None, centre=True).double()
        torch.testing.assert_close(factors @ factors.T, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"similarity": "sample"}, {"similarity": "sample", "rank": 4}], ids=["default", "sample", "rank"]
)
def test_weight_falls_as_samples_grow_alike(clusters: Clusters, options: dict[str, object]) -> None:
    """The sign is the opposite of hard-negative methods."""
    terms = WeightedInfoNCE(**options)(clusters)
    rows, columns = every_pair(60)
    sides = (clusters.image_features, clusters.text_features)
    similarity = sum((side[rows] * side[columns]).sum(1) for side in sides)
    assert torch.corrcoef(torch.stack([pair_log_weights(terms, rows, columns), similarity]))[0, 1] < -0.5


def test_hardness_by_a_loop(clusters: Clusters) -> None:
    """Pairs that the model confuses count more; the weights of each anchor have mean 1."""
    index = torch.tensor([3, 17, 8, 40, 21])
    terms = WeightedInfoNCE(beta=2.0, text_beta=1.0, hardness=0.3)(clusters).take(index)
    x, y = (torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(k)), dim=1) for k in (0, 1))
    z, total = 3.0 * x.double() @ y.double().T, 0.0
    r, t = (
        table[labels[index]][:, labels[index]].tolist()
        for table, labels in (
            (clusters.image_similarity, clusters.image.labels),
            (clusters.text_similarity, clusters.text.labels),
        )
    )
    for logits in (z.tolist(), z.T.tolist()):
        for i in range(5):
            incorrect = [j for j in range(5) if j != i]
            weight = {j: math.exp(-2 * r[i][j] - t[i][j] + 0.3 * logits[i][j]) for j in incorrect}
            mean = sum(weight.values()) / len(incorrect)
            negatives = sum(weight[j] / mean * math.exp(logits[i][j]) for j in incorrect)
            total += math.log(math.exp(logits[i][i]) + negatives) - logits[i][i]
    assert float(weighted_info_nce(x, y, 3.0, terms=terms)) == pytest.approx(total / 10, rel=1e-5)


def test_without_betas_samples_weigh_nothing(clusters: Clusters) -> None:
    assert WeightedInfoNCE(beta=0.0, text_beta=0.0, similarity="sample")(clusters).neutral


def test_mean_weight_is_one_in_the_loss(clusters: Clusters) -> None:
    """With equal logits the denominator counts the kept negatives: loss = log(1 + kept) for each row."""
    index = torch.arange(40)
    terms = WeightedInfoNCE(image_quantile=0.7, remove=True)(clusters).take(index)
    same = torch.nn.functional.normalize(torch.ones(40, 4), dim=1)
    image, text = ReliabilityGate(image_quantile=0.7, text_quantile=0.95).tables(clusters)
    a, c = clusters.image.labels[index], clusters.text.labels[index]
    kept = (image[a][:, a] & text[c][:, c]).sum(1)
    expected = torch.log1p(kept.float()).mean()
    torch.testing.assert_close(weighted_info_nce(same, same, 1.0, terms=terms), expected)


@pytest.mark.parametrize(
    "options",
    [{"beta": -1.0}, {"text_beta": -0.1}, {"beta": math.nan}, {"similarity": "pixel"}, {"rank": 0}, {"text_quantile": 2.0}],
    ids=lambda o: next(iter(o)),
)
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        WeightedInfoNCE(**options)


def test_sample_similarity_needs_features(clusters: Clusters) -> None:
    bare = Clusters(clusters.image, clusters.text, clusters.image_similarity, clusters.text_similarity)
    with pytest.raises(InputError, match="image features"):
        WeightedInfoNCE(similarity="sample")(bare)
    assert WeightedInfoNCE()(bare).factors is None


def test_random_reduction_drops_as_many_as_the_gate(clusters: Clusters) -> None:
    share = removed_share(clusters, *ReliabilityGate(image_quantile=0.7, text_quantile=0.8).tables(clusters))
    terms = RandomReduction(image_quantile=0.7, text_quantile=0.8)(clusters)
    rows, columns = every_pair(240)
    dropped = float((pair_log_weights(terms, rows, columns) == -torch.inf).double().mean())
    assert dropped == pytest.approx(share, abs=0.02)


def test_random_reduction_knows_nothing_of_the_clusters(clusters: Clusters) -> None:
    terms = RandomReduction(share=0.5)(clusters)
    rows, columns = every_pair(240)
    dropped = (pair_log_weights(terms, rows, columns) == -torch.inf).double()
    same = clusters.image.labels[rows] == clusters.image.labels[columns]
    assert float(dropped[same].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(dropped[~same].mean()) == pytest.approx(0.5, abs=0.02)
    again = RandomReduction(share=0.5, seed=1)(clusters)
    assert not torch.equal(terms.image_labels, again.image_labels)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_random_reduction_at_its_ends(clusters: Clusters, share: float, expected: float) -> None:
    table = RandomReduction(share=share)(clusters).image_table
    assert float((table == -torch.inf).double().mean()) == expected


@pytest.mark.parametrize("options", [{"share": 1.5}, {"share": -0.1}, {"n_groups": 1}])
def test_random_reduction_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} must be at least"):
        RandomReduction(**options)
