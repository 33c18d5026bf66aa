"""Checks of negative samplers."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from clip_negatives.interfaces import (
    Clusters,
    IncorrectPairs,
    NegativeSampler,
    ObservingSampler,
    PairsForImages,
    SamplingContext,
)
from clip_negatives.sampling import epoch_generator
from clip_negatives.step import Position, Step, StepSamples, Towers
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.subject import Checks, NotApplicableError, expect, expect_tensor, must_reject, unmodified_clusters

DIM = 16  # size of the live features
N, B = 100, 8  # samples and batch size of most checks; the last four samples fill no batch
SEEDED = "Draw from clip_negatives.sampling.epoch_generator(context.seed, epoch) only."


class SamplerChecks(Checks):
    """Checks of a negative sampler: batches and incorrect pairs."""

    def batches_are_lists_of_b_indices(self) -> None:
        """Every batch is a list of exactly B ints within 0 .. N-1."""
        for batch in self._instance():
            expect(isinstance(batch, list), f"A batch is a {type(batch).__name__}. Yield a list of ints: tensor.tolist().")
            expect(len(batch) == B, f"A batch has {len(batch)} samples instead of {B}. Drop the samples that fill no batch.")
            wrong = [index for index in batch if not isinstance(index, int) or not 0 <= index < N]
            expect(not wrong, f"A batch holds {wrong[:1]}. Yield ints within 0 .. {N - 1}, the samples of the data.")

    def no_index_twice_in_an_epoch(self) -> None:
        """No sample occurs twice in an epoch of a process; in a sampler with ``repeats = True``, not twice in a batch."""
        ((index, count),) = Counter(itertools.chain(*self._epoch())).most_common(1)
        if not self._repeats:
            expect(count == 1, f"Sample {index} occurs {count} times in an epoch. Use each sample at most once.")
        repeated = [batch for batch in self._epoch() if len(set(batch)) < len(batch)]
        expect(not repeated, f"A batch has a sample twice: {repeated[:1]}. Use each sample at most once in a step.")

    def length_is_exact(self) -> None:
        """``len(sampler)`` is the number of batches of an epoch, for every size of data, and at least 1."""
        for n, batch_size, world_size in ((N, B, 1), (96, B, 1), (B, B, 1), (N, B, 2), (97, 5, 3)):
            sampler = self._instance(n, batch_size, world_size=world_size)
            length, batches = len(sampler), len(as_lists(sampler))
            case = f"{n} samples, batch size {batch_size} and {world_size} processes"
            expect(length == batches, f"len() is {length}, but an epoch has {batches} batches ({case}). Return their number.")
            expect(batches > 0, f"An epoch has no batch ({case}). Yield n // (batch_size * world_size) batches.")

    def ranks_are_disjoint(self) -> None:
        """No sample is in the batches of two processes in one epoch; with ``repeats = True``, in one step."""
        by_rank = [self._epoch(rank=rank, world_size=3) for rank in range(3)]
        steps = zip(*by_rank, strict=True) if self._repeats else [[itertools.chain(*batches) for batches in by_rank]]
        for step in steps:
            owners = Counter(index for batch in step for index in set(batch))
            ((index, count),) = owners.most_common(1)
            expect(count == 1, f"Sample {index} is on {count} ranks. Give each rank its own samples.")

    def ranks_have_equal_length(self) -> None:
        """All processes get the same number of batches; otherwise training waits forever for a process that has ended."""
        lengths = [len(self._epoch(rank=rank, world_size=3)) for rank in range(3)]
        expect(len(set(lengths)) == 1, f"Ranks 0, 1 and 2 get {lengths} batches. Give every rank the same number.")

    def same_seed_gives_the_same_batches(self) -> None:
        """Two samplers with one seed yield the same epoch; several processes and resumed runs rely on this."""
        expect(self._epoch() == self._epoch(), f"Two samplers with the same seed yield different batches. {SEEDED}")

    def different_seeds_give_different_batches(self) -> None:
        """Samplers with two seeds yield different epochs."""
        expect(self._epoch() != self._epoch(seed=1), f"Seeds 0 and 1 give the same batches. {SEEDED}")

    def next_epoch_differs(self) -> None:
        """The next epoch has different batches."""
        sampler = self._instance()
        first = as_lists(sampler)
        sampler.set_epoch(1)
        expect(as_lists(sampler) != first, f"Epochs 0 and 1 have the same batches. {SEEDED}")

    def epoch_is_repeatable(self) -> None:
        """Iterating twice without ``set_epoch`` yields the same batches."""
        sampler = self._instance()
        expect(as_lists(sampler) == as_lists(sampler), f"A second pass over one epoch yields different batches. {SEEDED}")

    def set_epoch_starts_at_the_first_batch(self) -> None:
        """``set_epoch`` starts a whole epoch, also after an unfinished epoch."""
        sampler = self._begun(3)
        sampler.set_epoch(1)
        batches, whole = len(as_lists(sampler)), len(self._epoch())
        expect(batches == whole, f"After set_epoch, only {batches} of {whole} batches follow. Reset the position in set_epoch.")

    def clusters_are_not_modified(self) -> None:
        """The sampler does not write to the clusters."""
        with unmodified_clusters(N) as clusters:
            self._use(self._instance(clusters=clusters))

    def works_with_loader_workers(self) -> None:
        """A ``DataLoader`` with two workers, which prefetches batches, reads the samples of each batch."""
        expected = sorted(self._epoch())
        prefetched = as_lists(list(self._instance()))  # all batches, before the first is used
        expect(sorted(prefetched) == expected, "A batch changes after it was yielded. Yield a new list for each batch.")
        data: Any = range(N)
        loader = DataLoader[Any](data, batch_sampler=self._instance(), num_workers=2, generator=torch.Generator())
        read = sorted(as_lists(loader))
        expect(
            read == expected,
            "DataLoader workers read other samples than the sampler yields. Do not depend on the process that iterates.",
        )

    def resumes_within_an_epoch(self) -> None:
        """``load_state_dict`` continues at the next batch, even if the sampler was used in between."""
        sampler = self._instance()
        sampler.set_epoch(3)
        iterator = iter(sampler)
        list(itertools.islice(iterator, 5))
        state, rest = dict(sampler.state_dict()), as_lists(iterator)
        sampler.set_epoch(4)
        as_lists(sampler)
        sampler.load_state_dict(state)
        sampler.set_epoch(3)  # open_clip sets the epoch before it iterates
        message = "A resumed epoch does not continue at the next batch. Keep the position if set_epoch gets the loaded epoch."
        expect(as_lists(sampler) == rest, message)

    def state_is_json(self) -> None:
        """``state_dict`` holds only JSON values: checkpoints store it without pickle."""
        state = self._begun(2).state_dict()
        same = json.loads(json.dumps(state, default=repr)) == state
        expect(same, f"The state is not JSON: {state!r}. Use numbers, strings, lists and dicts with string keys.")

    def foreign_state_is_rejected(self) -> None:
        """``load_state_dict`` rejects a state of another sampler with an error of clip_negatives.errors."""
        with must_reject("an empty state"):
            self._instance().load_state_dict({})

    def too_large_batches_are_rejected(self) -> None:
        """A step (batch size x processes) with more samples than the data is an error of clip_negatives.errors."""
        for batch_size, world_size in ((N + 1, 1), (N // 2 + 1, 2)):
            with must_reject(f"batches of {batch_size} on {world_size} processes from {N} samples"):
                self._instance(batch_size=batch_size, world_size=world_size)

    def incorrect_pairs_are_of_two_samples(self) -> None:
        """``incorrect_pairs`` returns int64 indices within 0 .. N-1; image and text are of different samples."""
        pairs = self._pairs()
        expect(len(pairs) > 0, "incorrect_pairs returns no pair. Return M > 0 pairs.")
        for name, index in (("image_index", pairs.image_index), ("text_index", pairs.text_index)):
            expect_tensor(name, index, torch.int64, (len(pairs),), below=N)
        _expect_other_texts(pairs)

    def incorrect_pairs_are_distinct(self) -> None:
        """``incorrect_pairs(per_image)`` gives an image at most `per_image` texts, all different."""
        for per_image in (1, 3):
            pairs = self._pairs(per_image)
            most = int(pairs.image_index.bincount().max())
            expect(most <= per_image, f"An image has {most} pairs. Draw at most per_image={per_image} for each image.")
            repeated = len(pairs) - torch.stack([pairs.image_index, pairs.text_index]).unique(dim=1).shape[1]
            expect(repeated == 0, f"{repeated} pairs occur twice. Draw the texts of an image without replacement.")

    def incorrect_pairs_follow_the_generator(self) -> None:
        """The same generator draws the same incorrect pairs."""
        _expect_equal(self._pairs(), self._pairs())

    def incorrect_pairs_of_given_images(self) -> None:
        """``incorrect_pairs_of`` draws pairs of the given images only; the same generator draws the same pairs."""
        sampler = self._instance()
        if not isinstance(sampler, PairsForImages):
            raise NotApplicableError("the sampler has no incorrect_pairs_of")
        images = torch.arange(3, N, 5)
        first, second = (sampler.incorrect_pairs_of(images, 2, epoch_generator(0, 0)) for _ in range(2))
        foreign = int((~torch.isin(first.image_index, images)).sum())
        expect(foreign == 0, f"{foreign} pairs are of other images. Draw pairs of the given images only.")
        _expect_other_texts(first)
        _expect_equal(first, second)

    def observed_steps_count_in_the_next_epoch(self) -> None:
        """``observe`` does not change the batches of the present epoch: a loader reads ahead."""
        sampler, fresh = self._observing_sampler(), self._observing_sampler()
        before = as_lists(sampler)
        observe_epoch(sampler, before)
        expect(as_lists(sampler) == before, "observe changes the batches of its epoch. Use what was learned in the next epoch.")
        sampler.set_epoch(1)
        fresh.set_epoch(1)
        learned = sampler.learned()
        same = all(torch.equal(value, learned[name]) for name, value in fresh.learned().items())
        expect(not same, "After observe, learned() is as before. Return all that was learned, as tensors.")

    def learned_state_resumes(self) -> None:
        """A sampler that loads ``learned()`` goes on as the one that returned it, within the epoch and in the next ones."""
        sampler, resumed = self._observing_sampler(), self._observing_sampler()
        observe_epoch(sampler, as_lists(sampler))
        sampler.set_epoch(1)
        observe_epoch(sampler, as_lists(itertools.islice(sampler, 3)))
        resumed.load_state_dict(sampler.state_dict())
        resumed.load_learned({name: value.clone() for name, value in sampler.learned().items()})
        for epoch in (1, 2):
            for each in (sampler, resumed):
                each.set_epoch(epoch)
            message = f"After load_learned, epoch {epoch} has other batches. Return the whole memory from learned()."
            expect(as_lists(sampler)[-3:] == as_lists(resumed)[-3:], message)

    def _instance(self, n: int = N, batch_size: int = B, *, clusters: Clusters | None = None, **run: Any) -> NegativeSampler:
        """Return a sampler of `n` samples in blobs, each with a caption; `run` is rank, world_size, seed."""
        clusters = make_blobs(n, n_clusters=min(12, n)) if clusters is None else clusters
        captions = [f"text {row} of {n}, in some words" for row in range(n)]
        sampler: NegativeSampler = self.plugin.create(SamplingContext.of(clusters, batch_size, captions=captions, **run))
        return sampler

    @property
    def _repeats(self) -> bool:
        return bool(getattr(self._instance(), "repeats", False))

    def _observing_sampler(self) -> Any:
        sampler = self._instance()
        if not isinstance(sampler, ObservingSampler):
            raise NotApplicableError("the sampler does not observe the training")
        return sampler

    def _use(self, instance: NegativeSampler) -> list[list[int]]:
        instance.incorrect_pairs(1, epoch_generator(0, 0))
        return as_lists(instance)

    def _epoch(self, **run: Any) -> list[list[int]]:
        return as_lists(self._instance(**run))

    def _begun(self, n_batches: int) -> NegativeSampler:
        """Return a sampler whose first epoch was stopped after `n_batches` batches."""
        sampler = self._instance()
        list(itertools.islice(iter(sampler), n_batches))
        return sampler

    def _pairs(self, per_image: int = 2) -> IncorrectPairs:
        return self._instance().incorrect_pairs(per_image, epoch_generator(0, 0))


def observe_epoch(sampler: ObservingSampler, batches: Iterable[list[int]]) -> None:
    """Let a sampler observe a step for each batch, with features and losses that depend on the samples only."""
    for number, batch in enumerate(batches):
        ids = torch.tensor(batch)
        table = torch.randn(N, 2, DIM, generator=epoch_generator(0, 0))[ids]
        features = Towers(F.normalize(table[:, 0], dim=1), F.normalize(table[:, 1], dim=1))
        step = Step(StepSamples(ids, ids), features, features, torch.tensor(10.0), position=Position.of(0, number, 100))
        sampler.observe(step, ids / N)


def as_lists(batches: Iterable[Any]) -> list[list[int]]:
    """Return the batches of a sampler or of a loader as lists, each copied when it is yielded."""
    return [[int(index) for index in batch] for batch in batches]


def _expect_other_texts(pairs: IncorrectPairs) -> None:
    own = int((pairs.image_index == pairs.text_index).sum())
    expect(own == 0, f"{own} images are paired with their own text. Draw the text of another sample.")


def _expect_equal(first: IncorrectPairs, second: IncorrectPairs) -> None:
    same = torch.equal(first.image_index, second.image_index) and torch.equal(first.text_index, second.text_index)
    expect(same, "The same generator draws different pairs. Draw only from the generator that is passed in.")
