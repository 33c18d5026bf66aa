from __future__ import annotations

import itertools
import math

import pytest
import torch

from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import centroid_similarity, pair_quantiles, removed_share
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters


def test_centroid_similarity_by_hand() -> None:
    table = centroid_similarity(torch.tensor([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0]]))
    half = 0.5**0.5
    expected = torch.tensor([[1, half, -1], [half, 1, -half], [-1, -half, 1]])
    torch.testing.assert_close(table, expected)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_quantile_is_of_pairs_of_samples(clusters: Clusters, quantile: float) -> None:
    labels, n = clusters.image.labels, clusters.n_samples
    values = sorted(float(clusters.image_similarity[labels[i], labels[j]]) for i in range(n) for j in range(n) if i != j)
    (found,) = pair_quantiles(clusters.image_similarity, clusters.image.sizes(), [quantile])
    below = sum(value < found for value in values) / len(values)
    up_to = sum(value <= found for value in values) / len(values)
    assert below <= quantile <= up_to + 1e-12


def test_quantiles_are_those_of_sorted_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(40, 40, generator=generator).mul(2).sub(1).round(decimals=4).fill_diagonal_(1.0)
    sizes = torch.randint(1, 9, (40,), generator=generator)
    labels = torch.arange(40).repeat_interleave(sizes)
    pairs = similarity[labels][:, labels][~torch.eye(len(labels), dtype=torch.bool)].sort().values
    quantiles = [0.0, 0.001, 0.25, 0.5, 0.95, 1.0]
    expected = [float(pairs[max(0, math.ceil(quantile * len(pairs)) - 1)]) for quantile in quantiles]
    assert pair_quantiles(similarity, sizes, quantiles) == expected
    monkeypatch.setattr("clip_negatives.clustering.similarity.CELLS_AT_ONCE", 100)  # blocks of 2 rows
    assert pair_quantiles(similarity, sizes, quantiles) == expected


def test_quantiles_without_a_pair() -> None:
    with pytest.raises(InputError, match="at least 2 samples"):
        pair_quantiles(torch.ones(1, 1), torch.tensor([1]), [0.5])


def test_removed_share_counts_every_pair(clusters: Clusters) -> None:
    image, text = ReliabilityGate(image_quantile=0.8, text_threshold=0.5).tables(clusters)
    a, c, n = clusters.image.labels, clusters.text.labels, clusters.n_samples
    kept = sum(bool(image[a[i], a[j]] & text[c[i], c[j]]) for i, j in itertools.permutations(range(n), 2))
    assert removed_share(clusters, image, text) == pytest.approx(1 - kept / (n * (n - 1)), abs=1e-12)
