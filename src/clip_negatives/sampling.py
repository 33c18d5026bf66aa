"""Base class of samplers that plan a whole epoch: seeds, sharding over ranks, exact length, resuming."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_negatives.errors import DataError, InputError
from clip_negatives.interfaces import Clusters, IncorrectPairs, SamplingContext

Plan = Callable[[torch.Generator], Tensor] | Callable[[torch.Generator, int], Tensor]
"""``plan(generator)`` or ``plan(generator, epoch)``, with the epoch from 0: returns the sample ids of every step of the epoch,
shape (steps, world_size * B). No sample is twice in a step, nor, unless the sampler has ``repeats = True``, in an epoch."""


SHUFFLED_AT_ONCE = 2**20
"""Number of entries that `shuffle_rows` shuffles at a time."""


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a CPU generator for one epoch of one seed: equal on every rank, different for every epoch.

    Raises:
        InputError: seed or epoch is negative or not a whole number.
    """
    if not (isinstance(seed, Integral) and isinstance(epoch, Integral)) or seed < 0 or epoch < 0:
        raise InputError(f"seed and epoch must be whole numbers of at least 0, got {seed!r} and {epoch!r}.")
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """Return 0 .. n-1 in random order, int32 if that is wide enough: an epoch may have 1e9 samples."""
    return torch.randperm(n, generator=generator, dtype=torch.int32 if n <= 2**31 - 1 else torch.int64)


def shuffle_rows(rows: Tensor, generator: torch.Generator) -> None:
    """Shuffle each row independently, in place, a limited number of rows at a time."""
    for part in rows.split(max(1, SHUFFLED_AT_ONCE // max(1, rows.shape[1]))):
        order = torch.rand(part.shape, generator=generator).argsort(dim=1)
        part.copy_(part.gather(1, order))


class PlannedSampler:
    """A `NegativeSampler` that follows a plan of each epoch.

    The plan of an epoch depends only on seed and epoch, so all ranks draw the same plan. Rank r takes the columns
    ``r * B .. (r + 1) * B`` of each step. The loss contrasts all samples of a step, over all ranks.

    Args:
        context: data, batch size, processes and seed of the training run.
        plan: ``plan(generator)`` or ``plan(generator, epoch)``; returns the sample ids of all steps of an epoch, int64 or
            int32, shape (steps, world_size * B), with ``steps = N // (world_size * B)``.

    Raises:
        DataError: one step needs more samples than the data have.
        InputError: the batch size is below 1 or the seed below 0.

    Examples:
        >>> context = SamplingContext(n_samples=6, batch_size=2)
        >>> sampler = PlannedSampler(context, lambda generator: torch.arange(6).view(3, 2))
        >>> len(sampler), list(sampler)
        (3, [[0, 1], [2, 3], [4, 5]])
    """

    name: str = ""  # of the function of the plan, for messages
    repeats: bool = False  # whether a sample may occur in several steps of an epoch

    def __init__(self, context: SamplingContext, plan: Plan) -> None:
        self.context = context
        self.plan = plan
        self._sees_epoch = "epoch" in inspect.signature(plan).parameters
        self._epoch = 0
        self._position = 0
        self._resumed = False
        if context.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {context.batch_size}.")
        if not isinstance(context.seed, Integral) or context.seed < 0:
            raise InputError(f"seed must be a whole number of at least 0, got {context.seed!r}.")
        if len(self) == 0:
            repair = "a smaller batch size" if context.n_samples >= context.world_size else "fewer processes"
            raise DataError(
                f"One step needs {self.step_size} samples (batch size {context.batch_size} x {context.world_size} processes), "
                f"the data have {context.n_samples}. Use {repair}."
            )

    @property
    def step_size(self) -> int:
        """Return the samples of one step over all ranks, world_size * B."""
        return self.context.step_size

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank; samples that do not fill a step are left out of the epoch."""
        return self.context.n_samples // self.step_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch for this rank; iterators are independent of each other."""
        yield from self._batches_after(self._position if self._resumed else 0)

    def _batches_after(self, n: int) -> Iterator[list[int]]:
        """Yield the batches of the epoch for this rank, without the first `n`."""
        self._resumed = False
        start = self.context.rank * self.context.batch_size
        for position, step in enumerate(self._steps_after(n), n + 1):
            self._position = position
            yield step[start : start + self.context.batch_size].tolist()

    def _steps_after(self, n: int) -> Iterator[Tensor]:
        """Yield the sample ids of each step of the epoch, without the first `n` steps."""
        plan = self.planned(self._epoch)
        return (plan[position] for position in range(n, len(self)))

    def planned(self, epoch: int) -> Tensor:
        """Return the sample ids of every step of `epoch`, int64 or int32, shape (steps, world_size * B).

        Raises:
            InputError: the plan has another shape, or a sample twice.
        """
        steps = self._checked_shape(self._planned(epoch_generator(self.context.seed, epoch), epoch), len(self))
        if _repeats(steps, self.context.n_samples, within_epoch=not self.repeats):
            limit = "in a step" if self.repeats else "in an epoch, or set repeats"
            raise InputError(f"The sampler {name_of(self)} plans a sample several times. Use each at most once {limit}.")
        return steps

    def _checked_shape(self, steps: Tensor, n_steps: int) -> Tensor:
        shape = n_steps, self.step_size
        if not isinstance(steps, Tensor) or steps.shape != shape:
            found = tuple(steps.shape) if isinstance(steps, Tensor) else f"a {type(steps).__name__}"
            needed = f"shape {shape} (steps, world_size * batch size)"
            raise InputError(f"The plan of the sampler {name_of(self)} must have {needed}, got {found}.")
        return steps

    def _planned(self, generator: torch.Generator, epoch: int) -> Tensor:
        plan: Any = self.plan
        steps: Tensor = plan(generator, epoch) if self._sees_epoch else plan(generator)
        return steps

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch: keep the position if `load_state_dict` just loaded it, otherwise start at the first batch."""
        self._resumed = self._resumed and epoch == self._epoch
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of its batches that were yielded (with loader workers: passed to the workers)."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the next batch that was not yielded.

        Raises:
            InputError: the state belongs to a sampler of another length, or is invalid.
        """
        epoch, position = state.get("epoch"), state.get("position")
        if not isinstance(epoch, int) or not isinstance(position, int) or not 0 <= position <= len(self):
            raise InputError(
                f"The state of a sampler needs an epoch and a position within 0 .. {len(self)}, got {state!r}. Resume with the "
                "data, batch size and number of processes of the stopped run."
            )
        self._epoch, self._position, self._resumed = epoch, position, True

    def incorrect_pairs(self, per_image: int, generator: torch.Generator) -> IncorrectPairs:
        """Draw `per_image` different texts for each image of an epoch, from the step of the image, as in training.

        Raises:
            InputError: a step has fewer than `per_image` other samples.
        """
        if not 1 <= per_image < self.step_size:
            raise InputError(
                f"Pairs per image must be within 1 .. {self.step_size - 1} for steps of {self.step_size}, got {per_image}."
            )
        steps = self._planned(generator, self._epoch).long()
        # All images of a step use the same cyclic shifts, which all differ: no image gets a text twice.
        order = torch.rand(len(steps), self.step_size - 1, generator=generator).argsort(dim=1)
        shifts = order[:, :per_image] + 1
        places = (torch.arange(self.step_size)[None, :, None] + shifts[:, None, :]) % self.step_size
        texts = steps.gather(1, places.flatten(1))
        images = steps.flatten()
        kept = _first_places(images) if self.repeats else slice(None)
        return IncorrectPairs(images[kept].repeat_interleave(per_image), texts.view(-1, per_image)[kept].flatten())


def name_of(sampler: Any) -> str:
    """Return the name of a sampler for messages: that of its function or of its class."""
    return str(getattr(sampler, "name", "") or type(sampler).__qualname__)


def _repeats(steps: Tensor, n_samples: int, *, within_epoch: bool) -> bool:
    """Return whether a valid id is twice in an epoch, or in a step; other checks find invalid ids."""
    if bool((steps < 0).any() | (steps >= n_samples).any()):
        return False
    if not within_epoch:
        ordered = steps.sort(dim=1).values
        return bool((ordered[:, 1:] == ordered[:, :-1]).any())
    seen = torch.zeros(n_samples, dtype=torch.bool)
    seen[steps.flatten().long()] = True
    return int(seen.sum()) < steps.numel()


def _first_places(values: Tensor) -> Tensor:
    """Return the place of the first occurrence of each value, in order."""
    _, group = values.unique(return_inverse=True)
    places = torch.arange(len(values))
    first = torch.full((int(group.max()) + 1,), len(values)).scatter_reduce(0, group, places, "amin")
    return first.sort().values


def require_clusters(context: SamplingContext, name: str) -> Clusters:
    """Return the clusters of the context.

    Raises:
        InputError: clusters are missing, or have another number of samples.
    """
    clusters = context.clusters
    if clusters is None:
        raise InputError(f"The sampler {name!r} needs clusters. Prepare them with: clip-negatives prepare.")
    if clusters.n_samples != context.n_samples:
        raise InputError(
            f"The sampler {name!r} needs clusters of the {context.n_samples} training samples, but these clusters have "
            f"{clusters.n_samples}. Prepare clusters from the training data."
        )
    return clusters
