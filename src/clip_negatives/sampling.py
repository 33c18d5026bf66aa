"""What every batch sampler needs: seeds, shards over ranks, exact lengths, resume. A sampler adds the plan of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_negatives.errors import DataError, InputError
from clip_negatives.interfaces import Clusters, IncorrectPairs, SamplingContext

Plan = Callable[[torch.Generator], Tensor]
"""``plan(generator) -> (steps, world_size * B)``: the sample indices of every step of one epoch, each at most once."""


SHUFFLED_AT_ONCE = 2**20
"""Entries whose order `shuffle_rows` draws at a time."""


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a CPU generator for one epoch of one seed, the same on every rank and unlike that of any other epoch.

    Raises:
        InputError: one of them is negative.
    """
    if seed < 0 or epoch < 0:
        raise InputError(f"Expected a seed and an epoch of at least 0, got {seed} and {epoch}.")
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """Return 0 .. n-1 in random order, int32 wherever that is wide enough: an epoch may have 1e9 samples."""
    return torch.randperm(n, generator=generator, dtype=torch.int32 if n <= 2**31 - 1 else torch.int64)


def shuffle_rows(rows: Tensor, generator: torch.Generator) -> None:
    """Put each row in a random order of its own, in place; only some rows are copied at a time."""
    at_once = max(1, SHUFFLED_AT_ONCE // max(1, rows.shape[1]))
    for some in rows.split(at_once):
        order = torch.rand(some.shape, generator=generator).argsort(dim=1)
        some.copy_(some.gather(1, order))


class PlannedSampler:
    """Turn the plan of an epoch into a `NegativeSampler`.

    The plan is made anew for each epoch from a generator that depends on (seed, epoch) alone, so all ranks make the same one
    and rank r takes columns ``r * B .. (r + 1) * B`` of each step. The batches of one step, of all ranks together, are what
    the loss contrasts.

    Args:
        context: what to sample for.
        plan: returns the indices of all steps of an epoch, int64 or int32, shape (steps, world_size * B), where
            ``steps = N // (world_size * B)``.

    Raises:
        DataError: one step needs more samples than there are.

    Examples:
        >>> context = SamplingContext(n_samples=6, batch_size=2)
        >>> sampler = PlannedSampler(context, lambda generator: torch.arange(6).view(3, 2))
        >>> len(sampler), list(sampler)
        (3, [[0, 1], [2, 3], [4, 5]])
    """

    def __init__(self, context: SamplingContext, plan: Plan) -> None:
        self.context = context
        self.plan = plan
        self._epoch = 0
        self._position = 0
        self._resumed = False
        if context.batch_size < 1:
            raise InputError(f"Expected a batch size of at least 1, got {context.batch_size}.")
        if context.seed < 0:
            raise InputError(f"Expected a seed of at least 0, got {context.seed}.")
        if len(self) == 0:
            raise DataError(
                f"Expected at least {self.step_size} samples for one step (batch size {context.batch_size} x "
                f"{context.world_size} processes), got {context.n_samples}. Use a smaller batch size."
            )

    @property
    def step_size(self) -> int:
        """Return the samples of one step over all ranks, world_size * B."""
        return self.context.batch_size * self.context.world_size

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank; samples that fill no step wait for another epoch."""
        return self.context.n_samples // self.step_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch for this rank."""
        if not self._resumed:
            self._position = 0
        self._resumed = False
        start = self.context.rank * self.context.batch_size
        shard = self.planned(self._epoch)[:, start : start + self.context.batch_size]
        while self._position < len(self):
            self._position += 1
            yield shard[self._position - 1].tolist()

    def planned(self, epoch: int) -> Tensor:
        """Return the indices of every step of `epoch`, int64 or int32, shape (steps, world_size * B).

        Raises:
            InputError: the plan has another shape.
        """
        steps = self.plan(epoch_generator(self.context.seed, epoch))
        if steps.shape != (len(self), self.step_size):
            raise InputError(
                f"Expected a plan of shape {(len(self), self.step_size)} (steps, world_size * batch size), "
                f"got {tuple(steps.shape)}."
            )
        return steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. The position within it is kept if this very epoch was just loaded, else it is the start."""
        self._resumed = self._resumed and epoch == self._epoch
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and how many of its batches were yielded (with loader workers: handed to them)."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the next batch that was not yielded.

        Raises:
            InputError: the state is not one of a sampler of this length.
        """
        epoch, position = state.get("epoch"), state.get("position")
        if not isinstance(epoch, int) or not isinstance(position, int) or not 0 <= position <= len(self):
            raise InputError(f"Expected a state with an epoch and a position within 0 .. {len(self)}, got {state!r}.")
        self._epoch, self._position, self._resumed = epoch, position, True

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw for each image of an epoch `per_image` different texts of its own step: pairs that training contrasts.

        Raises:
            InputError: a step holds fewer than `per_image` other samples.
        """
        if not 1 <= per_image < self.step_size:
            raise InputError(
                f"Expected 1 .. {self.step_size - 1} pairs per image (a step holds {self.step_size} samples), got {per_image}."
            )
        steps = self.plan(generator).long()
        # Everyone in a step looks the same few places to the right, around the end: the texts of one image all differ.
        order = torch.rand(len(steps), self.step_size - 1, generator=generator).argsort(dim=1)
        shifts = order[:, :per_image] + 1
        places = (torch.arange(self.step_size)[None, :, None] + shifts[:, None, :]) % self.step_size
        texts = steps.gather(1, places.flatten(1))
        return IncorrectPairs(steps.repeat_interleave(per_image, dim=1).flatten(), texts.flatten())


def require_clusters(context: SamplingContext, name: str) -> Clusters:
    """Return the clusters of the context.

    Raises:
        InputError: there are none, or they are of another number of samples.
    """
    clusters = context.clusters
    if clusters is None:
        raise InputError(f"Expected clusters for the sampler {name!r}, got none. Prepare them with: clip-negatives prepare.")
    if clusters.n_samples != context.n_samples:
        raise InputError(
            f"Expected clusters of {context.n_samples} samples for the sampler {name!r}, got {clusters.n_samples}. "
            "Prepare them from the data that is trained on."
        )
    return clusters
