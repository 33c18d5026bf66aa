"""Batches of neighbours by live features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives.step import Step, StepSamples, Towers
from clip_negatives.testing import parametrize_with_checks
from clip_negatives_plugins.mined.neighbours import known, live_neighbours, runs
from clip_negatives_plugins.mined.projection import Projection
from clip_negatives_plugins.mined.sampler import Mined
from tests import ranks
from tests.plugins.tiny_training import TinyTraining, check_resumes

pytestmark = pytest.mark.keeps_global_rng

N, BATCH, DIM = 96, 8, 6


def sampler(seed: int = 3, **options: object) -> Mined:
    return Mined(SamplingContext(N, BATCH, seed=seed), **options)


def random_features(seed: int = 0, n: int = N, dim: int = DIM) -> Towers:
    rows = F.normalize(torch.randn(2, n, dim, generator=epoch_generator(seed, 0)), dim=2)
    return Towers(rows[0], rows[1])


def observe(batches: Mined, features: Towers, samples: Tensor) -> None:
    rows = features.map(lambda side: side[samples])
    batches.observe(Step(StepSamples(samples, samples), rows, rows, torch.tensor(10.0)), torch.zeros(len(samples)))


@parametrize_with_checks("negative_sampler", Mined)
def test_passes_the_kit(plugin, check) -> None:
    check(plugin)


def naive_neighbours(image: Tensor, text: Tensor | None, sample: int, window: int, limit: float) -> list[int]:
    """Return the neighbours of a sample, as loops in float64; samples with rows of zeros have no features."""
    sides = [side.double() for side in (image, text) if side is not None]
    scored = []
    for other in range(len(image)):
        if other != sample and all(bool(side[other].any()) for side in sides):
            crossed = zip(sides, reversed(sides), strict=True)
            similarity = sum(float(a[sample] @ b[other]) for a, b in crossed) / len(sides)
            cosine = sum(float(side[sample] @ side[other]) for side in sides) / len(sides)
            scored.append((-similarity, other, cosine))
    return [other for _, other, cosine in sorted(scored)[:window] if cosine < limit]


@pytest.mark.parametrize("window", [5, 200])
@pytest.mark.parametrize("by", ["pairs", "image", "text"])
def test_neighbours_equal_the_naive_loop(by: str, window: int) -> None:
    image, text = random_features()
    image[1], text[1] = F.normalize(image[0] + 0.05, dim=0), F.normalize(text[0] + 0.05, dim=0)  # near-duplicates
    image[7] = text[7] = 0  # without features
    parts = {"pairs": (image, text), "image": (image,), "text": (text,)}[by]
    found = live_neighbours(torch.stack(parts, dim=1), torch.tensor([0, 50, 95]), window, limit=0.95)
    for sample, row in zip((0, 50, 95), found.tolist(), strict=True):
        other = parts[1] if len(parts) == 2 else None
        expected = naive_neighbours(parts[0], other, sample, window, limit=0.95)
        assert [neighbour for neighbour in row if neighbour >= 0] == expected
        assert 7 not in row
    assert 1 not in found[0].tolist()


def naive_runs(seeds: list[int], neighbours: list[list[int]], size: int, n: int) -> list[list[int]]:
    """Return the samples of each run, and of each sample alone, as loops."""
    members = [[seed] for seed in seeds]
    taken = set(seeds)
    for column in range(len(neighbours[0])):
        for run, row in enumerate(neighbours):
            if row[column] >= 0 and row[column] not in taken and len(members[run]) < size:
                members[run].append(row[column])
                taken.add(row[column])
    return [sorted(run) for run in members] + [[sample] for sample in range(n) if sample not in taken]


@pytest.mark.parametrize("size", [2, 4, 9])
def test_runs_equal_the_naive_loop(size: int) -> None:
    for seed in range(20):
        generator = epoch_generator(seed, 0)
        seeds = torch.randperm(60, generator=generator)[:12]
        neighbours = torch.rand(12, 60, generator=generator).argsort(dim=1)[:, :7]
        neighbours[torch.rand(12, 7, generator=generator) < 0.2] = -1
        run = runs(seeds, neighbours, size, 60)
        got = [(run == number).nonzero().flatten().tolist() for number in range(int(run.max()) + 1)]
        assert got == naive_runs(seeds.tolist(), neighbours.tolist(), size, 60)


def test_epoch_0_is_a_shuffle_and_later_epochs_collect_live_neighbours() -> None:
    """With runs of two, a sample has a more similar sample in its step than in a shuffle, from epoch 1 on."""
    features = random_features()
    batches = sampler(run=2, share=1.0, window=4, by="image")
    cosines = features.image.double() @ features.image.double().T

    def nearness(plan: Tensor) -> float:
        inside = cosines.fill_diagonal_(0)[plan[:, :, None], plan[:, None, :]]
        return float(inside.amax(dim=2).mean())

    shuffled = nearness(batches.planned(0))
    assert sorted(batches.planned(0).flatten().tolist()) == list(range(N))
    for part in torch.arange(N).split(BATCH):
        observe(batches, features, part)
    assert nearness(batches.planned(0)) == shuffled
    batches.set_epoch(1)
    plan = batches.planned(1)
    assert sorted(plan.flatten().tolist()) == list(range(N))
    fresh = sampler(run=2, share=1.0, window=4, by="image")
    fresh.set_epoch(1)
    assert nearness(plan) > nearness(fresh.planned(1)) + 0.1


def test_samples_not_seen_yet_stay_alone() -> None:
    batches = sampler(run=5, share=1.0)
    seen = torch.arange(0, N, 5)[:20]
    observe(batches, random_features(), seen)
    assert known(batches.new["features"]).nonzero().flatten().tolist() == seen.tolist()
    batches.set_epoch(1)
    features = batches.memory["features"]
    found = live_neighbours(features, seen, 32, limit=2.0)
    assert set(found.flatten().tolist()) == {-1, *seen.tolist()}
    assert sorted(batches.planned(1).flatten().tolist()) == list(range(N))


def test_near_duplicates_do_not_meet_as_neighbours() -> None:
    rows = F.normalize(torch.ones(N, DIM) + 0.01 * random_features().image, dim=1)
    batches = sampler(share=1.0)
    observe(batches, Towers(rows, rows), torch.arange(N))
    batches.set_epoch(1)
    found = live_neighbours(batches.memory["features"], torch.arange(N), 32, limit=0.95)
    assert bool((found == -1).all())


def test_long_features_are_projected_and_short_ones_keep_their_cosines() -> None:
    short, long = random_features().image, random_features(dim=400).image
    projected = Projection(DIM + 3, seed=0)(short)
    torch.testing.assert_close(projected @ projected.T, short @ short.T)
    rows = Projection(200, seed=0)(long)
    difference = (rows @ rows.T - long @ long.T)[~torch.eye(N, dtype=torch.bool)]
    assert float(difference.square().mean().sqrt()) == pytest.approx((1 / 200 - 1 / 400) ** 0.5, rel=0.2)
    assert torch.equal(rows, Projection(200, seed=0)(long))
    assert not torch.equal(rows, Projection(200, seed=1)(long))


def test_features_that_are_not_finite_are_unknown() -> None:
    batches, features = sampler(), random_features()
    features.image[3], features.text[5, 0] = float("nan"), float("inf")
    observe(batches, features, torch.arange(N))
    assert known(batches.new["features"]).logical_not().nonzero().flatten().tolist() == [3, 5]
    batches.set_epoch(1)
    assert sorted(batches.planned(1).flatten().tolist()) == list(range(N))


def train_on_this_rank(folder: Path, local_loss: bool) -> None:
    """Train two epochs as one of two processes, and store batches and memory."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    batches = Mined(SamplingContext(N, BATCH, rank=rank, world_size=2, seed=3), share=1.0)
    options = {"rank": rank, "world_size": 2, "local_loss": local_loss, "gather_with_grad": True}
    training = TinyTraining(batches, **options)
    for epoch in (0, 1):
        training.train(epoch)
    torch.save((training.seen, batches.learned()), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("local_loss", [False, True])
def test_processes_learn_the_same_and_share_the_plan(tmp_path: Path, local_loss: bool) -> None:
    ranks.run(2, train_on_this_rank, tmp_path, local_loss, log=tmp_path / "log")
    seen, learned = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    assert all(torch.equal(value, learned[1][name]) for name, value in learned[0].items())
    assert bool(known(learned[0]["features"]).all())
    for epoch in torch.tensor(seen).chunk(2, dim=1):
        assert sorted(epoch.flatten().tolist()) == list(range(N))


@pytest.mark.parametrize("options", [{"run": 1}, {"share": 1.5}, {"window": 0}, {"limit": 0.0}, {"by": "both"}, {"length": 0}])
def test_options_out_of_range_are_errors(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        sampler(**options)


@pytest.mark.parametrize("by", ["pairs", "image", "text"])
def test_training_mines_and_resumes_within_the_second_epoch(by: str) -> None:
    options = {"by": by, "share": 1.0, "window": 8}
    whole = TinyTraining(sampler(**options))
    check_resumes(whole, TinyTraining(sampler(**options)), sampler(**options), 5)
    assert bool(known(whole.sampler.memory["features"]).all())


def test_the_memory_has_the_features_of_the_last_step() -> None:
    """After an epoch with one step, the memory is the features of this step."""
    batches = Mined(SamplingContext(N, N, seed=3))
    training = TinyTraining(batches)
    features = [side.detach() for side in training.features(torch.arange(N))]
    training.train(0)
    batches.set_epoch(1)
    expected = torch.stack([F.pad(side, (0, 252)) for side in features], dim=1)
    torch.testing.assert_close(batches.memory["features"].float(), expected, atol=1e-3, rtol=0)
