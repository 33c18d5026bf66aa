"""What every negative sampler must do with the batches of an epoch."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter
from typing import Any

import torch
from torch.utils.data import DataLoader

from clip_negatives.sampling import epoch_generator
from clip_negatives.testing import sampler_texts
from clip_negatives.testing.blobs import changed_parts, make_blobs
from clip_negatives.testing.epochs import B, N, as_list, by_content, epoch_of, make_sampler
from clip_negatives.testing.subject import Check, Subject, expect, global_generators_kept, refused

EPOCH = 3


def batches_are_lists_of_b_indices(plugin: Subject) -> None:
    """Each batch is a list of exactly B whole numbers within 0 .. N-1."""
    for batch in make_sampler(plugin):
        expect(isinstance(batch, list), f"Expected batches as lists, got {type(batch).__name__}.")
        expect(len(batch) == B, f"Expected {B} samples in each batch, got {len(batch)}.")
        for index in batch:
            fits = isinstance(index, int) and 0 <= index < N
            expect(fits, f"Expected whole numbers within 0 .. {N - 1}, got {index!r}.")


def no_index_twice_in_an_epoch(plugin: Subject) -> None:
    """No sample comes twice in an epoch of a process."""
    twice = [index for index, count in Counter(itertools.chain(*epoch_of(make_sampler(plugin)))).items() if count > 1]
    expect(not twice, f"Expected each sample at most once an epoch, got {len(twice)} more often, the first is {twice[:1]}.")


def length_is_exact(plugin: Subject) -> None:
    """``len(sampler)`` is the number of batches that an epoch yields, with every shape of data."""
    for n, batch_size, world_size in ((N, B, 1), (96, B, 1), (B, B, 1), (N, B, 2), (97, 5, 3)):
        sampler = make_sampler(plugin, n=n, batch_size=batch_size, world_size=world_size)
        found = len(epoch_of(sampler))
        given = f"N = {n}, batch size {batch_size}, {world_size} processes"
        expect(len(sampler) == found, f"Expected len() to be what is yielded, got {len(sampler)} and {found} with {given}.")
        expect(found > 0, f"Expected at least one batch with {given}, got none.")


def ranks_are_disjoint(plugin: Subject) -> None:
    """No sample comes in the batches of two processes within an epoch."""
    seen: dict[int, int] = {}
    for rank in range(3):
        for index in {index for batch in epoch_of(make_sampler(plugin, rank=rank, world_size=3)) for index in batch}:
            expect(index not in seen, f"Expected disjoint shards, got sample {index} on ranks {seen.get(index)} and {rank}.")
            seen[index] = rank


def ranks_are_equally_long(plugin: Subject) -> None:
    """All processes get the same number of batches: one that had fewer would keep the others waiting."""
    lengths = [len(epoch_of(make_sampler(plugin, rank=rank, world_size=3))) for rank in range(3)]
    expect(len(set(lengths)) == 1, f"Expected as many batches on every rank, got {lengths}.")


def same_seed_gives_the_same_batches(plugin: Subject) -> None:
    """Two samplers of one seed yield the same epoch: processes and resumed runs rely on it."""
    expect(
        epoch_of(make_sampler(plugin)) == epoch_of(make_sampler(plugin)),
        "Expected the same batches from the same seed, got others.",
    )


def another_seed_gives_other_batches(plugin: Subject) -> None:
    """Samplers of two seeds yield different epochs."""
    expect(
        epoch_of(make_sampler(plugin)) != epoch_of(make_sampler(plugin, seed=1)),
        "Expected other batches from another seed, got the same.",
    )


def next_epoch_differs(plugin: Subject) -> None:
    """The batches of the next epoch are others."""
    sampler = make_sampler(plugin)
    first = epoch_of(sampler)
    sampler.set_epoch(1)
    expect(epoch_of(sampler) != first, "Expected other batches in the next epoch, got the same.")


def an_epoch_repeats(plugin: Subject) -> None:
    """Iterating again without another epoch yields the same batches."""
    sampler = make_sampler(plugin)
    expect(epoch_of(sampler) == epoch_of(sampler), "Expected the same batches of the same epoch, got others.")


def set_epoch_starts_at_the_start(plugin: Subject) -> None:
    """An epoch that was left in the middle does not shorten the next one."""
    sampler = make_sampler(plugin)
    list(itertools.islice(iter(sampler), 3))
    sampler.set_epoch(1)
    found, whole = len(epoch_of(sampler)), len(epoch_of(make_sampler(plugin)))
    expect(found == whole, f"Expected all {whole} batches after set_epoch, got {found}.")


def global_generators_are_untouched(plugin: Subject) -> None:
    """Randomness comes from the seed, never from the global generators of torch, NumPy or Python."""
    with global_generators_kept():
        sampler = make_sampler(plugin)
        epoch_of(sampler)
        sampler.incorrect_pairs(1, epoch_generator(0, 0))


def clusters_are_left_as_they_are(plugin: Subject) -> None:
    """The clusters that it is handed are not written to."""
    clusters, before = make_blobs(N), make_blobs(N)
    sampler = make_sampler(plugin, clusters=clusters)
    epoch_of(sampler)
    sampler.incorrect_pairs(1, epoch_generator(0, 0))
    changed = changed_parts(clusters, before)
    expect(not changed, f"Expected clusters that are only read, got changed {', '.join(changed)}.")


def pickles(plugin: Subject) -> None:
    """It can be pickled, as processes are started with it, and the copy yields the same."""
    sampler = make_sampler(plugin)
    expect(epoch_of(pickle.loads(pickle.dumps(sampler))) == epoch_of(sampler), "Expected the same batches from a copy.")  # noqa: S301  (our own)


def serves_loader_workers(plugin: Subject) -> None:
    """A ``DataLoader`` with two workers, which draws batches ahead, reads the very samples of each batch."""
    held = list(make_sampler(plugin))  # as a loader holds those that it draws ahead
    expect(
        by_content(held) == by_content(epoch_of(make_sampler(plugin))),
        "Expected batches that stay as they were, got some that change.",
    )
    batches: Any = make_sampler(plugin)
    numbers: Any = range(N)
    loader = DataLoader[Any](numbers, batch_sampler=batches, num_workers=2, generator=torch.Generator())
    found = [batch.tolist() for batch in loader]
    expect(
        by_content(found) == by_content(epoch_of(make_sampler(plugin))),
        "Expected workers to read the sampler's batches, got others.",
    )


def resumes_within_an_epoch(plugin: Subject) -> None:
    """``load_state_dict`` goes on at the next batch that was not yielded, whatever happened in between."""
    sampler = make_sampler(plugin)
    sampler.set_epoch(EPOCH)
    iterator = iter(sampler)
    list(itertools.islice(iterator, 5))
    state = dict(sampler.state_dict())
    rest = [as_list(batch) for batch in iterator]
    sampler.set_epoch(EPOCH + 1)
    epoch_of(sampler)
    sampler.load_state_dict(state)
    sampler.set_epoch(EPOCH)  # open_clip sets the epoch before it iterates
    expect(epoch_of(sampler) == rest, "Expected to go on after the batches that were yielded, got other batches.")


def state_is_numbers_and_strings(plugin: Subject) -> None:
    """``state_dict`` holds what JSON can: checkpoints keep it without pickle."""
    sampler = make_sampler(plugin)
    list(itertools.islice(iter(sampler), 2))
    state = sampler.state_dict()
    try:
        same = json.loads(json.dumps(state)) == state
    except (TypeError, ValueError):
        same = False
    expect(same, f"Expected a state of numbers, strings, lists and mappings, got {state!r}.")


def state_of_something_else_is_refused(plugin: Subject) -> None:
    """``load_state_dict`` refuses what is no state of it with an error of clip_negatives.errors."""
    with refused("a state that is empty"):
        make_sampler(plugin).load_state_dict({})


def a_step_larger_than_the_data_is_refused(plugin: Subject) -> None:
    """A batch size, or one times the processes, that the data cannot fill is an error of clip_negatives.errors."""
    with refused(f"a batch of {N + 1} from {N} samples"):
        make_sampler(plugin, batch_size=N + 1)
    with refused(f"2 processes with batches of {N // 2 + 1} from {N} samples"):
        make_sampler(plugin, batch_size=N // 2 + 1, world_size=2)


CHECKS: tuple[Check, ...] = (
    batches_are_lists_of_b_indices,
    no_index_twice_in_an_epoch,
    length_is_exact,
    ranks_are_disjoint,
    ranks_are_equally_long,
    same_seed_gives_the_same_batches,
    another_seed_gives_other_batches,
    next_epoch_differs,
    an_epoch_repeats,
    set_epoch_starts_at_the_start,
    global_generators_are_untouched,
    clusters_are_left_as_they_are,
    pickles,
    serves_loader_workers,
    resumes_within_an_epoch,
    state_is_numbers_and_strings,
    state_of_something_else_is_refused,
    a_step_larger_than_the_data_is_refused,
    *sampler_texts.CHECKS,
)
