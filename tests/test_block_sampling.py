"""Samplers that plan an epoch in blocks: which part is planned when, each sample once, the same batches after a resume."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from clip_negatives import block_sampling
from clip_negatives.batches.checked import checked_batches
from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.block_sampling import Block, BlockSampler, Shuffle
from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import epoch_generator, permutation
from tests.batches.squares import Squares
from tests.conftest import make_clusters

N, B = 1003, 8
NAMES = ["in_batch", "cluster_similarity", "cluster_stratified", "cluster_diverse"]

pytestmark = pytest.mark.keeps_global_rng


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the smallest block to 64 samples and 4 steps."""
    monkeypatch.setattr(block_sampling, "MIN_BLOCK_SAMPLES", 64)
    monkeypatch.setattr(block_sampling, "MIN_BLOCK_STEPS", 4)


def make(name: str, n: int = N, **run: Any) -> Any:
    context = SamplingContext(n, B, clusters=make_clusters(n), captions=[f"a text {row}" for row in range(n)], **run)
    return registry.create("negative_sampler", name, context)


class Planned:
    """Counts the samples that a sampler plans."""

    def __init__(self, sampler: BlockSampler) -> None:
        self.plan, self.samples = sampler.plan, 0
        sampler.plan = self

    def __call__(self, generator: torch.Generator, block: Block) -> torch.Tensor:
        plan: Any = self.plan
        self.samples += block.stop - block.start
        steps: torch.Tensor = plan(generator, block)
        return steps


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 1003, 10_000])
def test_parts_of_a_shuffle_have_each_sample_once(n: int) -> None:
    shuffle = Shuffle(n, epoch_generator(0, 0))
    whole = shuffle.part(0, n)
    assert sorted(whole.tolist()) == list(range(n))
    cuts = [0, n // 3, n // 2, n]
    assert torch.equal(torch.cat([shuffle.part(*cut) for cut in itertools.pairwise(cuts)]), whole)


def test_each_sample_is_in_each_place_equally_often() -> None:
    n, draws = 7, 1400
    counts = torch.zeros(n, n)
    for seed in range(draws):
        counts[torch.arange(n), Shuffle(n, epoch_generator(seed, 0)).part(0, n).long()] += 1
    expected = draws / n
    assert float(((counts - expected) ** 2 / expected).sum()) < 2 * (n - 1) ** 2


def test_neighbours_in_a_shuffle_are_independent() -> None:
    places = Shuffle(10**5, epoch_generator(1, 0)).part(0, 10**5).double()
    for distance in (1, 2, 317, 1000):
        pair = torch.stack([places[:-distance], places[distance:]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_blocks")
def test_first_batch_plans_one_block(name: str) -> None:
    sampler = make(name)
    assert sampler.n_blocks == 15
    planned = Planned(sampler)
    batches = iter(sampler)
    next(batches)
    assert 64 <= planned.samples < 128
    list(batches)
    assert planned.samples == N


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_blocks")
def test_each_sample_once_over_all_blocks_and_ranks(name: str) -> None:
    ranks = [make(name, rank=rank, world_size=2) for rank in range(2)]
    epochs = []
    for epoch in range(3):
        for rank in ranks:
            rank.set_epoch(epoch)
        shards = [list(rank) for rank in ranks]
        assert [len(shard) for shard in shards] == [N // (2 * B)] * 2 == [len(rank) for rank in ranks]
        steps = [left + right for left, right in zip(*shards, strict=True)]
        assert steps == ranks[0].planned(epoch).tolist()
        samples = list(itertools.chain(*steps))
        assert len(set(samples)) == len(samples)
        epochs.append(set(samples))
    assert set.union(*epochs) == set(range(N)), "other samples are left out of each epoch"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0, 1, 8, 11, 60, 124, 125])
@pytest.mark.usefixtures("small_blocks")
def test_resumed_epoch_plans_only_the_blocks_that_are_left(name: str, position: int) -> None:
    whole, stopped = make(name), make(name)
    for sampler in (whole, stopped):
        sampler.set_epoch(3)
    expected = list(whole)
    head = list(itertools.islice(stopped, position))
    resumed, skipping = make(name), make(name)
    planned = Planned(resumed), Planned(skipping)
    resumed.load_state_dict(stopped.state_dict() if position else {"epoch": 3, "position": 0})
    resumed.set_epoch(3)
    assert head + list(resumed) == expected
    skipping.set_epoch(3)
    assert list(checked_batches(skipping, N, position)) == expected[position:]
    for count in planned:
        assert count.samples < N - position * B + 128
    assert list(skipping) == expected, "the next pass is whole"


@pytest.mark.parametrize("name", NAMES)
def test_one_block_is_a_plan_of_the_whole_epoch(name: str) -> None:
    sampler = make(name)
    assert sampler.n_blocks == 1
    assert sampler.state_dict() == {"epoch": 0, "position": 0}
    if name == "in_batch":
        order = permutation(N, epoch_generator(0, 2))
        assert torch.equal(sampler.planned(2), order[: N // B * B].view(-1, B))


@pytest.mark.usefixtures("small_blocks")
def test_sampler_that_gathers_clusters_has_one_block() -> None:
    assert make("one_cluster").n_blocks == 1


@pytest.mark.usefixtures("small_blocks")
def test_state_within_an_epoch_of_other_blocks() -> None:
    sampler = make("cluster_similarity")
    for state in ({"epoch": 2, "position": 9}, {"epoch": 2, "position": 9, "blocks": 14}):
        with pytest.raises(InputError, match=r"the epoch now has 15 blocks.*at the beginning of an epoch"):
            sampler.load_state_dict(state)
    for position, left in ((0, len(sampler)), (len(sampler), 0)):
        sampler.load_state_dict({"epoch": 2, "position": position})
        assert len(list(sampler)) == left


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes loaders of 5 batches in two blocks."""
    monkeypatch.setattr(block_sampling, "MIN_BLOCK_SAMPLES", 8)
    monkeypatch.setattr(block_sampling, "MIN_BLOCK_STEPS", 2)

    def loader() -> IndexedLoader:
        native = DataLoader(Squares(), batch_size=4, generator=torch.Generator())
        return IndexedLoader(native, registry.create("negative_sampler", "in_batch", context))

    context = SamplingContext(20, 4)
    return loader


@pytest.mark.parametrize("position", [1, 2, 4])
def test_loader_resumes_with_the_blocks_that_are_left(loaders: Any, position: int) -> None:
    whole, stopped, resumed = loaders(), loaders(), loaders()
    expected = [samples.ids.tolist() for _, samples in whole]
    list(itertools.islice(stopped, position))
    resumed.load_state_dict(stopped.state_dict())
    planned = Planned(resumed.negatives)
    assert [samples.ids.tolist() for _, samples in resumed] == expected[position:]
    assert planned.samples == (20 if position < 2 else 12)


def test_loader_state_within_an_epoch_of_other_blocks(loaders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks = loaders()
    monkeypatch.undo()
    whole = loaders()
    list(itertools.islice(whole, 2))
    with pytest.raises(InputError, match=r"2 blocks.*version of clip-negatives"):
        in_blocks.load_state_dict(whole.state_dict())
    list(whole)
    in_blocks.load_state_dict(whole.state_dict())
    in_blocks.set_epoch(1)
    assert len(list(in_blocks)) == 5


@pytest.mark.usefixtures("small_blocks")
def test_sampler_that_adds_captions_skips_blocks_too() -> None:
    sampler, whole = (make("swapped_words") for _ in range(2))
    assert sampler.n_blocks == 15
    planned = Planned(sampler.sampler)
    assert list(checked_batches(sampler, N, 100)) == list(whole)[100:]
    assert planned.samples < N - 100 * B + 128


@pytest.mark.usefixtures("small_blocks")
def test_plan_of_a_block_with_a_wrong_shape() -> None:
    sampler = BlockSampler(SamplingContext(N, B), lambda generator, block: torch.arange(B)[None])
    with pytest.raises(InputError, match=r"must have shape \(8, 8\)"):
        next(iter(sampler))


@pytest.mark.usefixtures("small_blocks")
def test_batches_after_some_are_independent_of_other_iterators() -> None:
    first, second = make("in_batch"), make("in_batch")
    batches = list(second)
    later, all_batches = first.batches_after(3), iter(first)
    assert next(all_batches) == batches[0]
    assert list(later) == batches[3:]
    assert list(all_batches) == batches[1:]
