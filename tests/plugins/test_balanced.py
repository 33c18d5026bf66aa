"""Samplers that balance frequent and rare entries."""

from __future__ import annotations

import dataclasses
import itertools
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_negatives import BatchSamples, NegativesClipLoss
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing import parametrize_with_checks
from clip_negatives_plugins.balanced.draws import dealt, systematic
from clip_negatives_plugins.balanced.sampler import Balanced

pytestmark = pytest.mark.keeps_global_rng

BATCH = 8
SIZES = (120, 40, 20, 10, 5, 3, 2)


def clusters_of(sizes: tuple[int, ...]) -> Clusters:
    """Return clusters of these sizes, the same for images and texts."""
    n = len(sizes)
    labels = torch.arange(n).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=epoch_generator(5, 0))]
    side = Clustering(labels, torch.eye(n))
    return Clusters(side, side, torch.eye(n), torch.eye(n), groups=7 * labels + 3)


def sampler(sizes: tuple[int, ...] = SIZES, batch_size: int = BATCH, **options: object) -> Balanced:
    return Balanced(SamplingContext.of(clusters_of(sizes), batch_size, seed=3), **options)


@parametrize_with_checks("negative_sampler", Balanced)
def test_passes_the_kit(plugin, check) -> None:
    check(plugin)


def expected_counts(labels: list[int], t: int, n_drawn: int) -> list[float]:
    """Return how often each sample occurs in expectation, from the formula of MetaCLIP, as loops in float64."""
    probabilities = []
    for label in labels:
        size = sum(1 for other in labels if other == label)
        probabilities.append(t / size if size > t else 1.0)
    return [n_drawn * p / sum(probabilities) for p in probabilities]


@pytest.mark.parametrize("by", ["image", "text", "groups"])
@pytest.mark.parametrize("t", [1, 7, 30, 1000])
def test_counts_agree_with_the_formula(by: str, t: int) -> None:
    """Over many epochs, the mean count of each sample is within 4.5 standard errors of its expectation."""
    batches, epochs = sampler(t=t, by=by, batch_size=4), 400
    labels = batches.context.clusters.image.labels
    expected = torch.tensor(expected_counts(labels.tolist(), t, len(batches) * 4), dtype=torch.float64)
    plans = torch.stack([batches.planned(epoch).flatten() for epoch in range(epochs)])
    counts = torch.stack([plan.bincount(minlength=len(labels)) for plan in plans]).double()
    assert bool(((counts == expected.floor()) | (counts == expected.ceil())).all())
    fraction = expected - expected.floor()
    error = (fraction * (1 - fraction) / epochs).sqrt()
    assert bool(((counts.mean(0) - expected).abs() <= 4.5 * error + 1e-6).all())


def test_every_start_gives_the_exact_expectation() -> None:
    """Summed over all values of the random start, a sample is drawn in proportion to its integer weight."""
    weights, n_draws = torch.tensor([3, 1, 4, 2, 1]), 4
    total = int(weights.sum())
    counts = torch.zeros(5, dtype=torch.int64)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    for start in range(total):
        for number in range(n_draws):
            point, end = (number * total + start) // n_draws, 0
            for sample in order.tolist():
                end += int(weights[sample])
                if point < end:
                    counts[sample] += 1
                    break
    assert torch.equal(counts, weights * n_draws)
    drawn = torch.stack([systematic(weights, n_draws, torch.Generator().manual_seed(seed)) for seed in range(2000)])
    shares = drawn.flatten().bincount(minlength=5) / 2000
    torch.testing.assert_close(shares, weights * n_draws / total, atol=0.05, rtol=0)


@pytest.mark.parametrize(("t", "batch_size"), [(1, 7), (1, 4), (2, 13), (3, 20), (20, 100)])
def test_no_sample_is_twice_in_a_step(t: int, batch_size: int) -> None:
    """In the tightest case, t=1 and 7 entries in steps of 7, each step has one sample of each entry."""
    batches = sampler(t=t, batch_size=batch_size)
    for epoch in range(20):
        plan = batches.planned(epoch)
        assert all(len(set(step)) == batch_size for step in plan.tolist())
        if t == 1 and batch_size == 7:
            assert all(len(set(step.tolist())) == 7 for step in batches.context.clusters.image.labels[plan])


def test_equal_draws_meet_other_companions() -> None:
    """Two samples in all of 50 steps meet in all; two in half of the steps meet in about a quarter, not in half."""
    steps = 50
    draws = torch.arange(40).repeat_interleave(steps // 2)
    together = torch.zeros(40, 40)
    for epoch in range(100):
        plan = dealt(draws, steps, epoch_generator(0, epoch))
        assert torch.equal(plan.flatten().sort().values, draws)
        present = torch.zeros(steps, 40).scatter_(1, plan, 1.0)
        together += present.T @ present / 100
    # Samples 2k and 2k + 1 share a part, so they are never in one step.
    part = torch.arange(40) // 2
    apart = part[:, None] != part
    torch.testing.assert_close(together[apart].mean(), torch.tensor(steps / 4), atol=0.1, rtol=0)
    assert float(together[apart].std()) < 1


def test_default_t_is_the_median_size_or_enough_for_a_step() -> None:
    assert sampler().t == 10
    assert sampler(batch_size=100).t == 30  # 30 + 30 + 20 + 10 + 5 + 3 + 2 samples
    assert sampler(batch_size=200).t == 120


def test_options_out_of_range_are_errors() -> None:
    for options in ({"t": 0}, {"by": "both"}):
        with pytest.raises(InputError, match=next(iter(options))):
            sampler(**options)
    with pytest.raises(InputError, match=r"t=29 keeps fewer samples than one step has \(100\). Use t=30 or more."):
        sampler(batch_size=100, t=29)
    clusters = dataclasses.replace(clusters_of(SIZES), groups=None)
    with pytest.raises(InputError, match=r"by=groups needs groups.*--group-column"):
        Balanced(SamplingContext.of(clusters, BATCH), by="groups")


def test_ten_million_samples_need_no_loop_over_samples() -> None:
    """A million samples are planned in seconds; the time grows as N log N."""
    n, k = 10**6, 1000
    labels = (torch.rand(n, generator=epoch_generator(0, 0)) ** 3 * k).long()
    labels[:k] = torch.arange(k)
    side = Clustering(labels, torch.eye(k, 2))
    begun = time.perf_counter()
    batches = Balanced(SamplingContext.of(Clusters(side, side, torch.empty(0, 0), torch.empty(0, 0)), 1024))
    plan = batches.planned(0)
    assert time.perf_counter() - begun < 30
    assert plan.shape == (n // 1024, 1024)
    assert bool((plan.sort(dim=1).values.diff(dim=1) > 0).all())


class Losses:
    """A training of two linear towers on random data."""

    def __init__(self, batches: Balanced) -> None:
        n = batches.context.n_samples
        generator = torch.Generator().manual_seed(0)
        self.batches, self.images = batches, torch.randn(n, 6, generator=generator)
        self.texts = self.images @ torch.randn(6, 5, generator=generator)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.towers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(5, 4)])
        self.optimizer = torch.optim.SGD(self.towers.parameters(), lr=0.5)
        self.loss = NegativesClipLoss()
        self.seen: list[list[int]] = []

    def train(self, n_batches: int | None = None) -> list[float]:
        losses = []
        for batch in itertools.islice(self.batches, n_batches):
            ids = torch.tensor(batch)
            x, y = (F.normalize(tower(rows[ids]), dim=1) for tower, rows in zip(self.towers, (self.images, self.texts)))
            loss: Tensor = self.loss(x, y, torch.tensor(10.0), samples=BatchSamples(ids=ids))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss))
            self.seen.append(batch)
        return losses


def test_training_learns_and_resumes_within_the_second_epoch() -> None:
    whole, stopped = Losses(sampler()), Losses(sampler())
    losses = whole.train()
    whole.batches.set_epoch(1)
    losses += whole.train()
    assert sum(losses[-5:]) < sum(losses[:5])
    stopped.train()
    stopped.batches.set_epoch(1)
    stopped.train(9)
    resumed = Losses(sampler())
    resumed.batches.load_state_dict(stopped.batches.state_dict())
    resumed.batches.set_epoch(1)
    resumed.towers.load_state_dict(stopped.towers.state_dict())
    rest = resumed.train()
    assert rest == losses[-len(rest) :]
    assert len(rest) == len(whole.batches) - 9
    assert stopped.seen + resumed.seen == whole.seen
