"""Batch sampler with the batches of a negative sampler, in the form that torch, accelerate and Lightning expect.

accelerate expects the batches of all processes from a batch sampler, and picks every n-th batch for one of n processes. A
negative sampler yields only the batches of its own process. So for every other process, the batch sampler yields a
placeholder: a batch of the id `ELSEWHERE`, which is an error when it is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DistributedSampler, Sampler, SequentialSampler

from clip_negatives.batches.checked import checked_batches
from clip_negatives.batches.extras import Item, with_additions
from clip_negatives.errors import InputError
from clip_negatives.interfaces import NegativeSampler
from clip_negatives.printing import warn

ELSEWHERE = -1  # id of each sample in a batch of another process


class WholeBatch(list[Any]):
    """A batch that accelerate must not split: a slice of it is an error."""

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            raise InputError("The batches cannot be split among processes. Create the Accelerator without split_batches=True.")
        return super().__getitem__(place)


class FirstId(int):
    """Id of the first sample of a batch, with the position of the batch in the training.

    So the position reaches the collate function with every loader that reads the batches, also with that of accelerate.

    Attributes:
        position: epoch, step and total number of steps, see `clip_negatives.step.Position`.
    """

    position: tuple[int, int, int | None]

    def __new__(cls, sample: int, epoch: int = 0, step: int = 0, total_steps: int | None = None) -> FirstId:
        """Return the id with the position of its batch."""
        first = super().__new__(cls, sample)
        first.position = epoch, step, total_steps
        return first


@dataclass(eq=False)
class NegativeBatches(Sampler[list[Any]]):
    """Batches of a negative sampler: lists of ids, or of `Item` if the sampler adds captions or images.

    An iteration yields the batches of all processes, step by step. Within `of_this_process`, it yields those of this process.

    Attributes:
        negatives: the negative sampler.
        n_samples: number of samples of the data set.
        batch_size: samples of one batch of one process; None if the size varies.
        drop_last: whether an epoch leaves out samples that do not fill a batch.
        rank: rank of this process.
        world_size: number of processes that have batches of their own; 1 if all processes have the same batches.
        skip: number of batches that the next iteration skips; another epoch resets it to 0.
        epoch: epoch of the next iteration.
        epochs: number of epochs of the training; None if unknown.
    """

    negatives: NegativeSampler
    n_samples: int
    batch_size: int | None = None
    drop_last: bool = True
    rank: int = 0
    world_size: int = 1
    skip: int = 0
    epoch: int = 0
    epochs: int | None = None
    _is_own: bool = False

    @property
    def sampler(self) -> NegativeBatches:
        """Return this object: accelerate and Lightning set the epoch of the sampler of a batch sampler."""
        return self

    @property
    def generator(self) -> Any:
        """Return the generator of the loop's own sampler; accelerate gives it the same state on all processes.

        Raises:
            AttributeError: the negative sampler does not yield the loop's own batches, or they have no generator.
        """
        return self._native_sampler.generator

    @generator.setter
    def generator(self, generator: Any) -> None:
        self._native_sampler.generator = generator

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler. Another epoch than the present one starts with its first batch."""
        if self.skip and epoch < self.epoch:
            warn(
                f"Epoch {epoch} begins, so the position in epoch {self.epoch} is lost. Call set_epoch({self.epoch}) on the "
                "loader that you iterate over, then resume.",
                stacklevel=3,
            )
        if epoch != self.epoch:
            self.skip = 0
        self.epoch = epoch
        self.negatives.set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of batches of all processes."""
        return self.world_size * len(self.negatives)

    def __iter__(self) -> Iterator[list[Any]]:
        return self._with_placeholders(0, 1) if self._is_own else self._with_placeholders(self.rank, self.world_size)

    @contextmanager
    def of_this_process(self) -> Iterator[None]:
        """Within the block, new iterators yield only the batches of this process."""
        self._is_own = True
        try:
            yield
        finally:
            self._is_own = False

    @property
    def _native_sampler(self) -> Any:
        if not getattr(self.negatives, "keeps_native_order", False):
            raise AttributeError("The sampler does not yield the batches of the loop.")
        owner: Any = self.negatives
        return owner.context.native_batches.sampler

    def _with_placeholders(self, rank: int, world_size: int) -> Iterator[list[Any]]:
        """Yield the batches of this process in the place `rank`, and placeholders for the other processes."""
        for batch in self._own_batches():
            if world_size == 1:
                yield batch
                continue
            placeholder: list[Any] = [Item(ELSEWHERE, None, [], []) if isinstance(item, Item) else ELSEWHERE for item in batch]
            yield from (WholeBatch(batch if peer == rank else placeholder) for peer in range(world_size))

    def _own_batches(self) -> Iterator[list[Any]]:
        """Yield the batches of the sampler, with its additions and positions. The first fetch reads `skip` and the epoch."""
        skip, self.skip = self.skip, 0
        epoch, n_batches = self.epoch, len(self.negatives)
        total = None if self.epochs is None else self.epochs * n_batches
        for step, batch in enumerate(checked_batches(self.negatives, self.n_samples, skip), epoch * n_batches + skip):
            batch[0] = FirstId(batch[0], epoch, step, total)
            yield with_additions(self.negatives, batch, self.n_samples)


class FixedOrder(DistributedSampler[int], SequentialSampler):
    """Sampler that Lightning keeps: the ids of the batches of this process, in their order.

    Lightning replaces a sampler that is no `DistributedSampler` when several processes train, and one that is no
    `SequentialSampler` under ``overfit_batches``. Both would change the batches, so this class is both.
    """

    def __init__(self, batches: NegativeBatches) -> None:
        super().__init__(range(batches.n_samples), num_replicas=batches.world_size, rank=batches.rank, shuffle=False)  # type: ignore[arg-type]
        self.data_source, self.batches = range(batches.n_samples), batches

    def __len__(self) -> int:
        """Return the number of samples of an epoch; too high if the last batch is shorter than the others."""
        return min(self.batches.n_samples, len(self.batches.negatives) * (self.batches.batch_size or self.batches.n_samples))

    def __iter__(self) -> Iterator[int]:
        with self.batches.of_this_process():
            batches = iter(self.batches)
        return (item.sample if isinstance(item, Item) else item for item in itertools.chain.from_iterable(batches))
