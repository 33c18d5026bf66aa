"""What every negative sampler must do."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clip_negatives.extra_texts import texts_per_image
from clip_negatives.interfaces import Clusters, NegativeSampler, SamplingContext
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.subject import Check, NotApplicableError, Subject, expect, global_generators_kept, refused

N, B = 100, 8
"""Samples and batch size of most checks; some samples fill no step."""

EPOCH = 3


def batches_are_lists_of_b_indices(plugin: Subject) -> None:
    """Each batch is a list of exactly B whole numbers within 0 .. N-1."""
    for batch in make(plugin):
        expect(isinstance(batch, list), f"Expected batches as lists, got {type(batch).__name__}.")
        expect(len(batch) == B, f"Expected {B} samples in each batch, got {len(batch)}.")
        for index in batch:
            fits = isinstance(index, int) and 0 <= index < N
            expect(fits, f"Expected whole numbers within 0 .. {N - 1}, got {index!r}.")


def no_index_twice_in_an_epoch(plugin: Subject) -> None:
    """No sample comes twice in an epoch of a process."""
    twice = [index for index, count in Counter(itertools.chain(*epoch_of(make(plugin)))).items() if count > 1]
    expect(not twice, f"Expected each sample at most once an epoch, got {len(twice)} more often, the first is {twice[:1]}.")


def length_is_exact(plugin: Subject) -> None:
    """``len(sampler)`` is the number of batches that an epoch yields, with every shape of data."""
    for n, batch_size, world_size in ((N, B, 1), (96, B, 1), (B, B, 1), (N, B, 2), (97, 5, 3)):
        sampler = make(plugin, n=n, batch_size=batch_size, world_size=world_size)
        found = len(epoch_of(sampler))
        given = f"N = {n}, batch size {batch_size}, {world_size} processes"
        expect(len(sampler) == found, f"Expected len() to be what is yielded, got {len(sampler)} and {found} with {given}.")
        expect(found > 0, f"Expected at least one batch with {given}, got none.")


def ranks_are_disjoint(plugin: Subject) -> None:
    """No sample comes in the batches of two processes within an epoch."""
    seen: dict[int, int] = {}
    for rank in range(3):
        for index in {index for batch in epoch_of(make(plugin, rank=rank, world_size=3)) for index in batch}:
            expect(index not in seen, f"Expected disjoint shards, got sample {index} on ranks {seen.get(index)} and {rank}.")
            seen[index] = rank


def ranks_are_equally_long(plugin: Subject) -> None:
    """All processes get the same number of batches: one that had fewer would keep the others waiting."""
    lengths = [len(epoch_of(make(plugin, rank=rank, world_size=3))) for rank in range(3)]
    expect(len(set(lengths)) == 1, f"Expected as many batches on every rank, got {lengths}.")


def same_seed_gives_the_same_batches(plugin: Subject) -> None:
    """Two samplers of one seed yield the same epoch: processes and resumed runs rely on it."""
    expect(epoch_of(make(plugin)) == epoch_of(make(plugin)), "Expected the same batches from the same seed, got others.")


def another_seed_gives_other_batches(plugin: Subject) -> None:
    """Samplers of two seeds yield different epochs."""
    expect(epoch_of(make(plugin)) != epoch_of(make(plugin, seed=1)), "Expected other batches from another seed, got the same.")


def next_epoch_differs(plugin: Subject) -> None:
    """The batches of the next epoch are others."""
    sampler = make(plugin)
    first = epoch_of(sampler)
    sampler.set_epoch(1)
    expect(epoch_of(sampler) != first, "Expected other batches in the next epoch, got the same.")


def an_epoch_repeats(plugin: Subject) -> None:
    """Iterating again without another epoch yields the same batches."""
    sampler = make(plugin)
    expect(epoch_of(sampler) == epoch_of(sampler), "Expected the same batches of the same epoch, got others.")


def set_epoch_starts_at_the_start(plugin: Subject) -> None:
    """An epoch that was left in the middle does not shorten the next one."""
    sampler = make(plugin)
    list(itertools.islice(iter(sampler), 3))
    sampler.set_epoch(1)
    found, whole = len(epoch_of(sampler)), len(epoch_of(make(plugin)))
    expect(found == whole, f"Expected all {whole} batches after set_epoch, got {found}.")


def global_generators_are_untouched(plugin: Subject) -> None:
    """Randomness comes from the seed, never from the global generators of torch, NumPy or Python."""
    with global_generators_kept():
        sampler = make(plugin)
        epoch_of(sampler)
        sampler.incorrect_pairs(1, epoch_generator(0, 0))


def clusters_are_left_as_they_are(plugin: Subject) -> None:
    """The clusters that it is handed are not written to."""
    clusters, before = make_blobs(N), make_blobs(N)
    sampler = make(plugin, clusters=clusters)
    epoch_of(sampler)
    sampler.incorrect_pairs(1, epoch_generator(0, 0))
    changed = changed_parts(clusters, before)
    expect(not changed, f"Expected clusters that are only read, got changed {', '.join(changed)}.")


def pickles(plugin: Subject) -> None:
    """It can be pickled, as processes are started with it, and the copy yields the same."""
    sampler = make(plugin)
    expect(epoch_of(pickle.loads(pickle.dumps(sampler))) == epoch_of(sampler), "Expected the same batches from a copy.")  # noqa: S301  (our own)


def serves_loader_workers(plugin: Subject) -> None:
    """A ``DataLoader`` with two workers, which draws batches ahead, reads the very samples of each batch."""
    held = list(make(plugin))  # as a loader holds those that it draws ahead
    expect(_sorted(held) == _sorted(epoch_of(make(plugin))), "Expected batches that stay as they were, got some that change.")
    batches: Any = make(plugin)
    numbers: Any = range(N)
    loader = DataLoader[Any](numbers, batch_sampler=batches, num_workers=2, generator=torch.Generator())
    found = [batch.tolist() for batch in loader]
    expect(_sorted(found) == _sorted(epoch_of(make(plugin))), "Expected workers to read the sampler's batches, got others.")


def resumes_within_an_epoch(plugin: Subject) -> None:
    """``load_state_dict`` goes on at the next batch that was not yielded, whatever happened in between."""
    sampler = make(plugin)
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
    sampler = make(plugin)
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
        make(plugin).load_state_dict({})


def incorrect_pairs_are_of_two_samples(plugin: Subject) -> None:
    """``incorrect_pairs`` returns int64 indices within 0 .. N-1, image and text never of one sample."""
    pairs = make(plugin).incorrect_pairs(2, epoch_generator(0, 0))
    for name, index in (("image_index", pairs.image_index), ("text_index", pairs.text_index)):
        fits = index.dtype == torch.int64 and index.ndim == 1 and len(index) == len(pairs) > 0
        expect(fits, f"Expected {name} as int64 of shape (M,), got {index.dtype} of shape {tuple(index.shape)}.")
        expect(0 <= int(index.min()) <= int(index.max()) < N, f"Expected {name} within 0 .. {N - 1}.")
    own = int((pairs.image_index == pairs.text_index).sum())
    expect(own == 0, f"Expected texts of other samples, got {own} pairs of an image with its own text.")


def incorrect_pairs_come_once(plugin: Subject) -> None:
    """``incorrect_pairs(per_image)`` gives no image a text twice, nor more than `per_image` of them."""
    for per_image in (1, 3):
        pairs = make(plugin).incorrect_pairs(per_image, epoch_generator(0, 0))
        most = int(pairs.image_index.bincount().max())
        expect(most <= per_image, f"Expected at most {per_image} pairs for an image, got {most}.")
        distinct = torch.stack([pairs.image_index, pairs.text_index]).unique(dim=1).shape[1]
        expect(distinct == len(pairs), f"Expected pairs that differ, got {len(pairs) - distinct} twice.")


def incorrect_pairs_follow_the_generator(plugin: Subject) -> None:
    """The same generator draws the same incorrect pairs."""
    one, other = (make(plugin).incorrect_pairs(2, epoch_generator(0, 0)) for _ in range(2))
    same = torch.equal(one.image_index, other.image_index) and torch.equal(one.text_index, other.text_index)
    expect(same, "Expected the same pairs from the same generator, got others.")


def a_step_larger_than_the_data_is_refused(plugin: Subject) -> None:
    """A batch size, or one times the processes, that the data cannot fill is an error of clip_negatives.errors."""
    with refused(f"a batch of {N + 1} from {N} samples"):
        make(plugin, batch_size=N + 1)
    with refused(f"2 processes with batches of {N // 2 + 1} from {N} samples"):
        make(plugin, batch_size=N // 2 + 1, world_size=2)


def extra_texts_fit_the_batch(plugin: Subject) -> None:
    """A sampler that adds texts adds as many strings to each sample as it says."""
    sampler, each = _adding(plugin)
    for batch in epoch_of(sampler)[:3]:
        texts = sampler.extra_texts(batch)
        fit = isinstance(texts, list) and len(texts) == each * len(batch) and all(isinstance(text, str) for text in texts)
        expect(fit, f"Expected a list of {each * len(batch)} texts for {len(batch)} samples, got {len(texts)} of them.")


def extra_texts_follow_the_seed(plugin: Subject) -> None:
    """A sampler that adds texts adds the same ones in the same epoch, wherever it is resumed."""
    (one, _), (other, _) = _adding(plugin), _adding(plugin)
    batch = list(range(B))
    expect(one.extra_texts(batch) == other.extra_texts(batch), "Expected the same texts in the same epoch, got others.")


def make(
    plugin: Subject,
    *,
    n: int = N,
    batch_size: int = B,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    clusters: Clusters | None = None,
) -> NegativeSampler:
    """Return the sampler of one process, over `n` samples in blobs, each with a text."""
    given = make_blobs(n, n_clusters=min(12, n)) if clusters is None else clusters
    captions = [f"text {row} of {n}, in some words" for row in range(n)]
    sampler: NegativeSampler = plugin.create(
        SamplingContext(n, batch_size, rank=rank, world_size=world_size, seed=seed, clusters=given, captions=captions)
    )
    return sampler


def epoch_of(sampler: NegativeSampler) -> list[list[int]]:
    """Return the batches of an epoch, copied as they are yielded."""
    return [as_list(batch) for batch in sampler]


def as_list(batch: Any) -> list[int]:
    """Return a batch as numbers, whatever holds them: what holds them is the matter of one check."""
    return [int(index) for index in batch]


def changed_parts(clusters: Clusters, before: Clusters) -> list[str]:
    """Return the names of the tensors that differ."""
    found = []
    for item in dataclasses.fields(Clusters):
        now, was = getattr(clusters, item.name), getattr(before, item.name)
        pairs = [(now.labels, was.labels), (now.centroids, was.centroids)] if hasattr(now, "labels") else [(now, was)]
        if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in pairs):
            found.append(item.name)
    return found


def _sorted(batches: Any) -> list[list[int]]:
    """Return batches in an order of their own: which comes first is the matter of other checks."""
    return sorted(as_list(batch) for batch in batches)


def _adding(plugin: Subject) -> tuple[Any, int]:
    """Return the sampler and how many texts it adds to each sample."""
    sampler = make(plugin)
    each = texts_per_image(sampler)
    if not each:
        raise NotApplicableError("it adds no texts")
    return sampler, each


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
    incorrect_pairs_are_of_two_samples,
    incorrect_pairs_come_once,
    incorrect_pairs_follow_the_generator,
    a_step_larger_than_the_data_is_refused,
    extra_texts_fit_the_batch,
    extra_texts_follow_the_seed,
)
