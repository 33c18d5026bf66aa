"""Retrieval and false negatives, against naive loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms
from clip_negatives.metrics import FalseNegatives, RankAtK, chance_rank_at_k, first_correct, rank_at_k


def _naive_rank_at_k(query, gallery, query_groups, gallery_groups, k):
    hits = 0
    for features, group in zip(query, query_groups.tolist(), strict=True):
        similarity = (gallery @ features).tolist()
        own = max(s for s, g in zip(similarity, gallery_groups.tolist(), strict=True) if g == group)
        before = sum(s >= own and g != group for s, g in zip(similarity, gallery_groups.tolist(), strict=True))
        hits += before < k
    return hits / len(query)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 15), groups=st.integers(1, 6), chunk=st.integers(1, 16), seed=st.integers(0, 99))
def test_rank_at_k_equals_a_loop_for_any_shape_with_and_without_ties(n, groups, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    gallery_groups = torch.randint(groups, (n,), generator=generator)
    query_groups = gallery_groups[torch.randint(n, (7,), generator=generator)]
    # Small integers: sums are exact, and many tie.
    query, gallery = (torch.randint(-1, 2, (m, 3), generator=generator).float() for m in (7, n))
    found = rank_at_k(query, gallery, query_groups, gallery_groups, (1, 2, 5), chunk_size=chunk)
    expected = [_naive_rank_at_k(query, gallery, query_groups, gallery_groups, k) for k in (1, 2, 5)]
    assert found.tolist() == pytest.approx(expected)


def test_without_ties_it_is_topk():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (F.normalize(torch.randn(m, 8, generator=generator), dim=1) for m in (50, 40))
    query_groups, gallery_groups = torch.arange(50) % 20, torch.arange(40) % 20
    for k in (1, 5, 40):
        top = (query @ gallery.T).topk(k).indices
        expected = (gallery_groups[top] == query_groups[:, None]).any(dim=1).float().mean()
        torch.testing.assert_close(rank_at_k(query, gallery, query_groups, gallery_groups, (k,))[0], expected)


def test_first_correct_tells_who_stands_first_and_never_by_a_tie():
    query, gallery = torch.eye(3), torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0.5, 0], [0, 1.0, 1.0]])
    rank, top = first_correct(query, gallery, torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 3]), chunk_size=2)
    # The first query ties with an entry of another group, which stands before its own.
    assert rank.tolist() == [2, 2, 1]
    assert top.tolist() == [1, 3, 3]


@pytest.mark.parametrize("value", [1.0, 0.0, torch.nan])
def test_a_model_that_tells_nothing_apart_scores_nothing(value):
    same = torch.full((4, 2), value)
    assert rank_at_k(same, same, torch.arange(4), torch.arange(4), (1, 3, 4)).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(3), torch.ones(3, 2), torch.arange(3), torch.arange(3)), r"got \(3, 3\) and \(3, 2\)"),
        ((torch.eye(3)[:0], torch.eye(3), torch.arange(0), torch.arange(3)), r"got \(0, 3\)"),
        ((torch.eye(3), torch.eye(3), torch.arange(2), torch.arange(3)), "one group for each"),
        ((torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3), (0,)), "every k to be at least 1"),
        ((torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3), ()), "every k to be at least 1"),
        ((torch.eye(3), torch.eye(3), torch.arange(1, 4), torch.arange(3)), "no gallery entry of its group"),
    ],
)
def test_rank_at_k_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(InputError, match=message):
        rank_at_k(*arguments)


def test_chance_is_the_share_of_all_orders_that_hit():
    gallery, queries = [0, 0, 1, 2, 2], [0, 1, 2, 2]
    for k in (1, 2, 3):
        draws = list(itertools.combinations(gallery, k))
        expected = sum(group in draw for group in queries for draw in draws) / (len(draws) * len(queries))
        assert chance_rank_at_k(torch.tensor(queries), torch.tensor(gallery), k) == pytest.approx(expected)


def test_chance_of_large_galleries_and_of_strangers():
    one_each = torch.arange(100_000)
    assert chance_rank_at_k(one_each, one_each, 10) == pytest.approx(1e-4)
    assert chance_rank_at_k(torch.tensor([0]), torch.zeros(30, dtype=torch.int64), 99) == 1.0
    assert chance_rank_at_k(torch.tensor([7, -7]), torch.arange(5), 5) == 0.0
    with pytest.raises(InputError, match="k of at least 1, got 0"):
        chance_rank_at_k(one_each, one_each, 0)
    m, n, k = 3, 50, 10
    groups = torch.tensor([0] * m + list(range(1, n - m + 1)))
    assert chance_rank_at_k(torch.tensor([0]), groups, k) == pytest.approx(1 - math.comb(n - m, k) / math.comb(n, k))


def test_the_metric_is_the_function_over_all_updates_in_both_directions():
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 12, 4, generator=generator)
    groups = torch.arange(12) // 2
    metric = RankAtK(top_k=(1, 3), chunk_size=5)
    for part in (slice(0, 5), slice(5, 12)):
        metric.update(image[part], text[part], groups[part])
    found = metric.compute()
    assert list(found) == [
        "text_to_image_rank_1",
        "text_to_image_rank_3",
        "image_to_text_rank_1",
        "image_to_text_rank_3",
    ]
    by_text, by_image = rank_at_k(text, image, groups, groups, (1, 3)), rank_at_k(image, text, groups, groups, (1, 3))
    torch.testing.assert_close(torch.stack(list(found.values())), torch.cat([by_text, by_image]))


def _naive_false_negatives(groups, b):
    n = len(groups)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    false = [(i, j) for i, j in pairs if groups[i] == groups[j]]
    removed, kept = sum(b[i, j] == -torch.inf for i, j in pairs), sum(b[i, j] != -torch.inf for i, j in false)
    return len(false), removed, kept, sum(b[i, j].exp() for i, j in pairs), sum(b[i, j].exp() for i, j in false)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_false_negatives_equal_a_loop(monkeypatch, chunk):
    monkeypatch.setattr("clip_negatives.metrics.false_negatives.CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4, 4, generator=generator)
    table = table.masked_fill(torch.rand(4, 4, generator=generator) < 0.5, -torch.inf)
    metric, counts = FalseNegatives(), torch.zeros(5)
    for n in (7, 5):
        groups, labels = torch.randint(3, (n,), generator=generator), torch.randint(4, (n,), generator=generator)
        metric.update(groups, LossTerms(image_labels=labels, image_table=table))
        counts += torch.tensor(_naive_false_negatives(groups, table[labels][:, labels]))
    false, removed, kept, weight, false_weight = counts.tolist()
    pairs = 7 * 6 + 5 * 4
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == pytest.approx(
        {
            "per_anchor": false / 12,
            "per_anchor_kept": kept / 12,
            "removed_share": removed / pairs,
            "removed_false_share": (false - kept) / false,
            "mean_weight": weight / (pairs - removed),
            "false_weight": (false_weight / false) / (weight / (pairs - removed)),
            "batches": 2,
        }
    )


@pytest.mark.parametrize("terms", [None, LossTerms()])
def test_nothing_is_removed_without_terms(terms):
    metric = FalseNegatives()
    metric.update(torch.tensor([0, 0, 1]), terms)
    found = metric.compute()
    assert found["per_anchor"] == found["per_anchor_kept"] == pytest.approx(2 / 3)
    assert found["removed_share"] == 0
    assert found["false_weight"] == 1


def test_anchors_are_some_of_the_batch():
    """Figures of every second image, against all texts, equal a naive loop over these rows."""
    generator = torch.Generator().manual_seed(1)
    groups, table = torch.randint(3, (9,), generator=generator), torch.randn(3, 3, generator=generator)
    terms, anchors = LossTerms(image_labels=groups, image_table=table), torch.arange(0, 9, 2)
    metric = FalseNegatives()
    metric.update(groups, terms, anchors)
    found = metric.compute()
    pairs = [(i, j) for i in anchors.tolist() for j in range(9) if i != j]
    weights = [table[groups[i], groups[j]].exp().item() for i, j in pairs]
    assert found["per_anchor"].item() == sum(bool(groups[i] == groups[j]) for i, j in pairs) / 5
    assert found["mean_weight"].item() == pytest.approx(sum(weights) / len(weights))


def test_an_empty_metric_and_a_batch_of_one_divide_by_nothing():
    metric = FalseNegatives()
    metric.update(torch.tensor([3]))
    found = metric.compute()
    assert found.pop("false_weight").isnan(), "no false negative, no weight"
    assert all(value.isfinite() for value in found.values())


def test_terms_of_another_batch_are_refused():
    terms = LossTerms(image_labels=torch.zeros(2, dtype=torch.int64), image_table=torch.zeros(1, 1))
    with pytest.raises(InputError, match="Expected terms of 3 samples"):
        FalseNegatives().update(torch.arange(3), terms)
