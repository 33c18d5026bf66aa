"""What samplers tell their users, and what `PlannedSampler` adds to what the conformance kit holds every sampler to."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import BatchSampler, DistributedSampler

from clip_negatives.errors import DataError, InputError
from clip_negatives.host import registry
from clip_negatives.interfaces import NegativeSampler, SamplingContext
from clip_negatives.sampling import PlannedSampler

from .conftest import make_clusters

N, B = 100, 8
SAMPLERS = [
    item.name for item in registry.default_registry().items("negative_sampler") if item.distribution == "clip-negatives"
]
SAMPLERS.remove("redrawn_captions")  # needs a file of captions


def make(name: str, rank: int = 0, world_size: int = 1, seed: int = 0, n: int = N, batch_size: int = B) -> NegativeSampler:
    clusters = make_clusters(n)
    captions = [f"text {row} of {n}" for row in range(n)]
    context = SamplingContext(n, batch_size, rank=rank, world_size=world_size, seed=seed, clusters=clusters, captions=captions)
    sampler: NegativeSampler = registry.create("negative_sampler", name, context)
    return sampler


pytestmark = [pytest.mark.parametrize("name", SAMPLERS), pytest.mark.keeps_global_rng]


def test_the_pass_after_a_resumed_one_is_whole(name: str) -> None:
    sampler = make(name)
    iterator = iter(sampler)
    head = [next(iterator) for _ in range(5)]
    state = sampler.state_dict()
    whole = list(sampler)
    resumed = make(name)
    resumed.load_state_dict(state)
    assert head + list(resumed) == whole
    assert list(resumed) == whole, "the next pass starts at the start"
    resumed.load_state_dict(state)
    resumed.set_epoch(4)
    assert len(list(resumed)) == len(resumed), "another epoch starts at its start"


@pytest.mark.parametrize("state", [{}, {"epoch": 0, "position": 99}, {"epoch": "x", "position": 0}])
def test_state_of_something_else(name: str, state: dict[str, object]) -> None:
    with pytest.raises(InputError, match="The state of a sampler"):
        make(name).load_state_dict(state)


def test_step_larger_than_data(name: str) -> None:
    with pytest.raises(DataError, match="smaller batch size"):
        make(name, batch_size=N + 1)
    with pytest.raises(DataError, match="2 processes"):
        make(name, world_size=2, batch_size=N // 2 + 1)


def test_plan_of_wrong_shape(name: str) -> None:
    sampler = PlannedSampler(SamplingContext(N, B), lambda generator: torch.arange(B)[None])
    with pytest.raises(InputError, match=r"\(12, 8\)"):
        list(sampler)


def test_in_batch_tells_the_loops_own_sampler_the_epoch(name: str) -> None:
    """Else a `DistributedSampler`, which shuffles by epoch, gives every epoch the order of the first."""
    if name != "in_batch":
        pytest.skip("it chooses its own batches")
    own = BatchSampler(DistributedSampler(range(N), num_replicas=2, rank=0, shuffle=True), B, drop_last=True)
    sampler: NegativeSampler = registry.create("negative_sampler", name, SamplingContext(N, B, native_batches=own))
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] != epochs[1]
    sampler.set_epoch(0)
    assert list(sampler) == epochs[0]
