from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from clip_negatives import registry
from clip_negatives.errors import DataError, InputError
from clip_negatives.interfaces import NegativeSampler, SamplingContext
from clip_negatives.sampling import PlannedSampler, epoch_generator

from .conftest import make_clusters

N, B = 100, 8
SAMPLERS = [
    item.name for item in registry.default_registry().items("negative_sampler") if item.distribution == "clip-negatives"
]


def make(name: str, rank: int = 0, world_size: int = 1, seed: int = 0, n: int = N, batch_size: int = B) -> NegativeSampler:
    clusters = make_clusters(n)
    captions = [f"text {row} of {n}" for row in range(n)]
    context = SamplingContext(n, batch_size, rank=rank, world_size=world_size, seed=seed, clusters=clusters, captions=captions)
    sampler: NegativeSampler = registry.create("negative_sampler", name, context)
    return sampler


pytestmark = [pytest.mark.parametrize("name", SAMPLERS), pytest.mark.keeps_global_rng]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_samples_of_an_epoch(name: str, world_size: int) -> None:
    shards = [list(make(name, rank, world_size)) for rank in range(world_size)]
    assert {len(shard) for shard in shards} == {N // (B * world_size)} == {len(make(name, 0, world_size))}
    assert all(len(batch) == B for shard in shards for batch in shard)
    seen = [index for shard in shards for batch in shard for index in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(N))


def test_epochs_differ_and_repeat(name: str) -> None:
    sampler = make(name)
    first = list(sampler)
    assert list(sampler) == first == list(make(name))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(make(name, seed=1)) != first


def test_resumes_within_an_epoch(name: str) -> None:
    sampler = make(name)
    sampler.set_epoch(3)
    iterator = iter(sampler)
    head = [next(iterator) for _ in range(5)]
    state = sampler.state_dict()
    whole = list(sampler)
    resumed = make(name)
    resumed.load_state_dict(state)
    resumed.set_epoch(3)  # open_clip sets the epoch before it iterates
    assert head + list(resumed) == whole
    assert list(resumed) == whole, "the next pass starts at the start"
    resumed.load_state_dict(state)
    resumed.set_epoch(4)
    assert len(list(resumed)) == len(resumed), "another epoch starts at its start"


@pytest.mark.parametrize("state", [{}, {"epoch": 0, "position": 99}, {"epoch": "x", "position": 0}])
def test_state_of_something_else(name: str, state: dict[str, object]) -> None:
    with pytest.raises(InputError, match="Expected a state"):
        make(name).load_state_dict(state)


def test_pickles_and_serves_loader_workers(name: str) -> None:
    sampler = pickle.loads(pickle.dumps(make(name)))
    loader = DataLoader(range(N), batch_sampler=sampler, num_workers=2, generator=torch.Generator())
    assert [batch.tolist() for batch in loader] == list(make(name))


def test_step_larger_than_data(name: str) -> None:
    with pytest.raises(DataError, match="smaller batch size"):
        make(name, batch_size=N + 1)
    with pytest.raises(DataError, match="2 processes"):
        make(name, world_size=2, batch_size=N // 2 + 1)


@pytest.mark.parametrize("per_image", [1, 3])
def test_incorrect_pairs_are_of_other_samples_and_differ(name: str, per_image: int) -> None:
    pairs = make(name).incorrect_pairs(per_image, epoch_generator(0, 0))
    assert not bool((pairs.image_index == pairs.text_index).any())
    both = torch.stack([pairs.image_index, pairs.text_index])
    assert len(pairs) == both.unique(dim=1).shape[1]
    assert int(pairs.image_index.bincount().max()) == per_image
    again = make(name).incorrect_pairs(per_image, epoch_generator(0, 0))
    assert torch.equal(pairs.text_index, again.text_index)


def test_plan_of_wrong_shape(name: str) -> None:
    sampler = PlannedSampler(SamplingContext(N, B), lambda generator: torch.arange(B)[None])
    with pytest.raises(InputError, match=r"\(12, 8\)"):
        list(sampler)
