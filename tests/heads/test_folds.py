"""Folds separate no component; near-duplicates equal a double loop."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.heads import folds_of, near_duplicates, part_of
from clip_negatives.heads.agreement import AGREEMENT_EXPONENT, MIN_DUPLICATE_AGREEMENT, centred
from clip_negatives.heads.folds import batch_size_for
from tests.conftest import make_clusters


def test_folds_hold_out_each_sample_once_and_separate_no_component() -> None:
    components = torch.randint(40, (500,), generator=torch.Generator().manual_seed(0))
    folds = folds_of(components, 3)
    assert torch.equal(torch.cat([fold.held_out for fold in folds]).sort().values, torch.arange(500))
    for fold in folds:
        assert torch.equal(torch.cat([fold.train, fold.held_out]).sort().values, torch.arange(500))
        assert not set(components[fold.train].tolist()) & set(components[fold.held_out].tolist())
        assert abs(len(fold.held_out) - 500 / 3) < 25


def test_folds_depend_on_the_seed_alone() -> None:
    components = torch.arange(60)
    first, again, other = (folds_of(components, 2, seed)[0].held_out for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("components", "n_folds"), [([0, 0, 1, 1], 3), ([0, 1, 2], 1)])
def test_a_wrong_number_of_folds_is_an_error(components: list[int], n_folds: int) -> None:
    with pytest.raises(InputError, match=r"folds= must be 2 \.\. "):
        folds_of(torch.tensor(components), n_folds)


def test_a_component_with_most_samples_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"has 60 % of the data, too much to hold out. Use fold_by= with a column that has smaller groups"
    ):
        folds_of(torch.tensor([0] * 6 + [1, 2, 3, 4]), 2)


def components_by_loop(images: Tensor, texts: Tensor) -> list[set[int]]:
    x, y = centred(images), centred(texts)
    component = list(range(len(x)))
    for i, j in itertools.combinations(range(len(x)), 2):
        agreement = float((x[i] @ x[j]).clamp(min=0) * (y[i] @ y[j]).clamp(min=0)) ** AGREEMENT_EXPONENT
        if agreement > MIN_DUPLICATE_AGREEMENT:
            component = [component[i] if c == component[j] else c for c in component]
    return [{row for row, c in enumerate(component) if c == name} for name in set(component)]


def test_near_duplicates_equal_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(12, (90,), generator=generator)
    images, texts = (
        F.normalize(torch.randn(12, 8, generator=generator)[points] + 0.15 * torch.randn(90, 8, generator=generator), dim=1)
        for _ in range(2)
    )
    components = near_duplicates(images, texts)
    sets = [set((components == name).nonzero().flatten().tolist()) for name in components.unique()]
    expected = components_by_loop(images, texts)
    assert sorted(map(sorted, sets)) == sorted(map(sorted, expected))
    assert 2 < len(expected) < 60


def test_equal_samples_are_near_duplicates_and_others_are_not() -> None:
    images = torch.eye(6)[[0, 0, 1, 2, 3, 3]]
    texts = torch.eye(6)[[0, 0, 1, 2, 3, 4]]
    components = near_duplicates(images, texts).tolist()
    assert components[0] == components[1]
    assert len(set(components)) == 5  # the last two have equal images, but different texts


def test_a_part_keeps_labels_features_and_similarities() -> None:
    clusters = make_clusters()
    rows = torch.arange(0, clusters.n_samples, 9)
    part = part_of(clusters, rows)
    assert part.n_samples == len(rows)
    for name in ("image", "text"):
        whole, kept = getattr(clusters, name), getattr(part, name)
        assert torch.equal(kept.centroids[kept.labels], whole.centroids[whole.labels[rows]])
        assert kept.sizes().min() > 0
        table, small = getattr(clusters, f"{name}_similarity"), getattr(part, f"{name}_similarity")
        pairs = whole.labels[rows][:, None], whole.labels[rows][None, :]
        torch.testing.assert_close(small[kept.labels[:, None], kept.labels[None, :]], table[pairs])
        assert torch.equal(getattr(part, f"{name}_features"), getattr(clusters, f"{name}_features")[rows])


@pytest.mark.parametrize(("n", "largest", "expected"), [(8, 512, 2), (1000, 512, 128), (5000, 512, 512), (5000, 64, 64)])
def test_batches_are_at_most_a_quarter_of_the_samples(n: int, largest: int, expected: int) -> None:
    assert batch_size_for(n, largest) == expected
