"""Sums that do not depend on the order."""

from __future__ import annotations

import math
import random

import pytest
import torch

from clip_negatives_plugins.parallel_kmeans.sums import Grid, Tally
from tests.plugins.parallel_kmeans.data import generator


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_sums_are_the_same_in_any_order_and_plain_ones_are_not(scale: float) -> None:
    smaller = 10 ** (-12 * torch.rand(20_000, generator=generator(1)))  # of one size, float32 adds up exactly in float64
    numbers = scale * smaller * torch.randn(20_000, generator=generator())
    on_grid = Grid.of(len(numbers), float(numbers.abs().max())).round(numbers)
    orders = [random.Random(seed).sample(range(len(numbers)), len(numbers)) for seed in range(5)]
    exact = math.fsum(on_grid.tolist())
    assert {sum(on_grid[order].tolist()) for order in orders} == {exact}
    assert len({sum(numbers.double()[order].tolist()) for order in orders}) > 1
    assert exact == pytest.approx(math.fsum(numbers.tolist()), abs=scale * 1e-6)


def test_half_precision_is_on_the_grid_of_a_million() -> None:
    numbers = torch.randn(1000, generator=generator()).clamp(-1, 1).half()
    assert torch.equal(Grid.of(10**6, 1.0).round(numbers.float()), numbers.double())


def test_the_largest_sum_is_exact() -> None:
    count = 2**20 + 1
    grid = Grid.of(count, 0.7)
    value = grid.round(torch.tensor([0.7]))
    assert float(value) * count == math.fsum([float(value)] * count)
    assert abs(float(value) - 0.7) < 1e-7
    assert Grid.of(5, 0.0).round(torch.zeros(2)).eq(0).all()


def test_tally_by_hand() -> None:
    rows, labels = torch.arange(8, dtype=torch.float64).view(4, 2), torch.tensor([2, 0, 2, 2])
    tally = Tally.empty(3, 2, torch.device("cpu"))
    tally.add(rows, labels)
    assert tally.sums.tolist() == [[2, 3], [0, 0], [10, 13]]
    assert tally.counts.tolist() == [1, 0, 3]
    tally.add(rows[3:], labels[3:], -1)
    assert tally.sums.tolist() == [[2, 3], [0, 0], [4, 6]]
    assert tally.counts.tolist() == [1, 0, 2]
    doubled = Tally(3, 2, tally.buffer * 2)
    assert doubled.counts.tolist() == [2, 0, 4]
