"""The sampler `in_batch`: a uniform shuffle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from clip_negatives.block_sampling import Block, BlockSampler
from clip_negatives.interfaces import SamplingContext


class InBatch(BlockSampler):
    """Batches from a uniform shuffle of the samples: the baseline.

    If the training loop has its own batches (``context.native_batches``), the sampler yields them unchanged. Training then sees
    the same batches as without this package. Sign: none.
    """

    requires_clusters = False
    keeps_native_order = True

    def __init__(self, context: SamplingContext) -> None:
        self._native = context.native_batches
        super().__init__(context, self._shuffle)
        if self._native is not None:
            self.n_blocks = 1

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return super().__len__() if self._native is None else len(self._native)  # type: ignore[arg-type]

    def _batches_after(self, n: int) -> Iterator[list[int]]:
        """Yield the loop's own batches, or the batches of the shuffle, without the first `n`."""
        if self._native is None:
            yield from super()._batches_after(n)
            return
        self._resumed = False
        for position, batch in enumerate(itertools.islice(self._native, n, None), n + 1):
            self._position = position
            yield list(batch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, also in the loop's own sampler if it has ``set_epoch`` (`DistributedSampler`)."""
        super().set_epoch(epoch)
        for owner in (self._native, getattr(self._native, "sampler", None)):
            set_native_epoch = getattr(owner, "set_epoch", None)
            if set_native_epoch is not None:
                set_native_epoch(epoch)

    def _shuffle(self, generator: torch.Generator, block: Block) -> Tensor:
        samples = block.samples(generator)
        return samples[: block.n_steps * self.step_size].view(block.n_steps, self.step_size)
