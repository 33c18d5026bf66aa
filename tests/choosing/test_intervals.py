"""Intervals of gains: by hand for one case, and their coverage for made-up scores."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from clip_negatives.choosing.intervals import gains
from clip_negatives.metrics.statistics import Gain

FOLDS, QUERIES = 3, 120


def made_up(
    generator: torch.Generator, n_candidates: int, n_seeds: int, gain: float = 0.0, of_run: float = 0.02
) -> tuple[list[list[list[Tensor]]], list[list[Tensor]]]:
    """Return the scores of candidates and of the reference: queries of different difficulty, and noise of each run."""
    difficulty = [torch.rand(QUERIES, generator=generator, dtype=torch.float64) for _ in range(FOLDS)]

    def scores(mean: float) -> list[list[Tensor]]:
        by_fold = []
        for fold in difficulty:
            own = 0.1 * torch.randn(QUERIES, generator=generator, dtype=torch.float64)  # what the method does to a query
            runs = of_run * torch.randn(n_seeds, 1, generator=generator, dtype=torch.float64)
            by_fold.append(list(fold + own + runs + mean))
        return by_fold

    return [scores(gain) for _ in range(n_candidates)], scores(0.0)


def one_each() -> list[Tensor]:
    return [torch.arange(QUERIES)] * FOLDS


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_intervals_hold_together_under_no_difference(n_seeds: int) -> None:
    """In 200 studies of six equal candidates, hardly one claims a gain or a loss."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(200):
        candidates, reference = made_up(generator, 6, n_seeds)
        wrong += any(gain.low > 0 or gain.high < 0 for gain in gains(candidates, reference, one_each(), comparisons=6))
    assert wrong <= 16  # 10 are expected; 17 or more have a probability of 3 %


def test_a_large_gain_is_significant_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = 0
    for _ in range(50):
        candidates, reference = made_up(generator, 6, 1, gain=0.08)
        seen += sum(gain.sign > 0 for gain in gains(candidates, reference, one_each(), comparisons=6))
    assert seen >= 0.8 * 6 * 50


def test_the_gain_is_relative_to_the_mean_of_the_reference() -> None:
    reference = [[torch.tensor([0.5, 0.25])], [torch.tensor([0.25, 0.25])]]
    candidate = [[torch.tensor([1.0, 0.25])], [torch.tensor([0.25, 0.5])]]
    (gain,) = gains([candidate], reference, [torch.arange(2)] * 2, comparisons=1)
    assert gain.estimate == pytest.approx(((1.25 / 2 + 0.75 / 2) / 2) / ((0.75 / 2 + 0.5 / 2) / 2) - 1)


def test_queries_of_one_group_count_once() -> None:
    """Each query twice, as one group, has the interval of the queries alone."""
    generator = torch.Generator().manual_seed(0)
    candidates, reference = made_up(generator, 2, 2)
    once = gains(candidates, reference, one_each(), comparisons=2)
    twice = [[[torch.cat([run, run]) for run in fold] for fold in scores] for scores in (*candidates, reference)]
    again = gains(twice[:2], twice[2], [torch.arange(QUERIES).repeat(2)] * FOLDS, comparisons=2)
    for one, other in itertools.zip_longest(once, again):
        assert (one.estimate, one.low, one.high) == pytest.approx((other.estimate, other.low, other.high))


def test_a_copy_of_the_reference_has_a_zero_interval() -> None:
    candidates, reference = made_up(torch.Generator().manual_seed(0), 2, 1)
    copy, *others = gains([reference, *candidates], reference, one_each(), comparisons=3)
    assert copy == Gain(0.0, 0.0, 0.0)
    assert others == gains(candidates, reference, one_each(), comparisons=3)
