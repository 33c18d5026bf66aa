"""Samplers that balance frequent and rare entries."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing import parametrize_with_checks
from clip_negatives_plugins.balanced.draws import dealt, systematic
from clip_negatives_plugins.balanced.sampler import Balanced
from tests.plugins.tiny_training import TinyTraining, check_resumes

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


def test_every_start_gives_the_exact_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all values of the random start, a sample is drawn exactly in proportion to its weight."""
    weights, n_draws = torch.tensor([3, 1, 4, 2, 1]), 4
    total = int(weights.sum())
    counts = torch.zeros(5, dtype=torch.int64)
    for start in range(total):
        monkeypatch.setattr(torch, "randint", lambda *_, start=start, **__: torch.tensor([start]))
        draws = systematic(weights, n_draws, epoch_generator(0, 0))
        counts += draws.bincount(minlength=5)
        assert len(draws.unique_consecutive()) == len(draws.unique())
    assert torch.equal(counts, weights * n_draws)


@pytest.mark.parametrize(("t", "batch_size"), [(1, 7), (1, 4), (2, 13), (3, 20), (30, 100)])
def test_no_sample_is_twice_in_a_step(t: int, batch_size: int) -> None:
    batches = sampler(t=t, batch_size=batch_size)
    for epoch in range(20):
        assert all(len(set(step)) == batch_size for step in batches.planned(epoch).tolist())


def test_with_as_few_samples_as_a_step_rare_samples_are_in_every_step() -> None:
    """With t=1, five entries count as five samples. A step has five samples, so the single samples have probability 1."""
    batches = sampler((120, 40, 1, 1, 1), t=1, batch_size=5)
    sizes = batches.context.clusters.image.sizes()[batches.context.clusters.image.labels]
    assert int(batches.weights.max()) * 5 <= int(batches.weights.sum())  # otherwise a step may have a sample twice
    single = set((sizes == 1).nonzero().flatten().tolist())
    for epoch in range(20):
        for step in batches.planned(epoch).tolist():
            assert len(set(step)) == 5
            assert single <= set(step)


def test_equal_draws_meet_other_companions() -> None:
    """Of 50 steps, a sample is in 25, and two samples meet in about a quarter, not in half of the steps or in none."""
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


def test_a_million_samples_are_planned_in_seconds() -> None:
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


def test_training_resumes_within_the_second_epoch() -> None:
    check_resumes(TinyTraining(sampler()), TinyTraining(sampler()), sampler(), 9)
