"""Standard in-batch negatives: a uniform shuffle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from clip_negatives.interfaces import SamplingContext
from clip_negatives.sampling import PlannedSampler, permutation


class InBatch(PlannedSampler):
    """Fill batches from a uniform shuffle of the samples.

    Inside a training loop that has a batch order of its own (``context.native_batches``), that order is yielded unchanged, so
    a run with this sampler sees the very batches it would see without this package.
    """

    requires_clusters = False
    keeps_native_order = True

    def __init__(self, context: SamplingContext) -> None:
        self._native = context.native_batches
        super().__init__(context, self._shuffle)

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return super().__len__() if self._native is None else len(self._native)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the loop's own batches, or those of the shuffle."""
        if self._native is None:
            yield from super().__iter__()
            return
        skip = self._position if self._resumed else 0
        self._resumed, self._position = False, skip
        for batch in itertools.islice(self._native, skip, None):
            self._position += 1
            yield list(batch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, also of the loop's own sampler, where it is told of epochs as a `DistributedSampler` is."""
        super().set_epoch(epoch)
        tell = getattr(getattr(self._native, "sampler", None), "set_epoch", None)
        if tell is not None:
            tell(epoch)

    def _shuffle(self, generator: torch.Generator) -> Tensor:
        steps = self.context.n_samples // self.step_size
        order = permutation(self.context.n_samples, generator)
        return order[: steps * self.step_size].view(steps, self.step_size)
