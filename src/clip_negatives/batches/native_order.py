"""The batches of a loop's own loader, in an order that can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import RandomSampler, SequentialSampler


class NativeOrder:
    """Batches of a loader's own batch sampler. A resumed iteration yields them in the order of the stopped iteration.

    `torch.utils.data.RandomSampler` draws its order from torch's global generator, or from the loader's own. The state of the
    generator at the start of an iteration determines the order.
    """

    def __init__(self, batches: Iterable[list[int]]) -> None:
        self.batches = batches
        self._started_with: Tensor | None = None
        self._restored: Tensor | None = None
        self._epoch: int | None = None

    @property
    def state(self) -> Tensor | None:
        """Return the state of the generator at the start of an iteration: the next one if it will be resumed, else the last."""
        return self._started_with if self._restored is None else self._restored

    def restore(self, state: Tensor | None) -> None:
        """Start the next iteration with this `state` of the generator; None draws a new order."""
        self._restored = state

    @property
    def sampler(self) -> Any:
        """Return the sampler of the batch sampler."""
        return getattr(self.batches, "sampler", None)

    @property
    def is_shared(self) -> bool:
        """Return whether each process has batches of its own, as with a `DistributedSampler`."""
        return hasattr(self.sampler, "num_replicas")

    @property
    def repeats_samples(self) -> bool:
        """Return whether each of several processes trains on all samples, because no `DistributedSampler` splits them."""
        is_whole = type(self.sampler) in (RandomSampler, SequentialSampler)
        return is_whole and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    @property
    def needs_epoch(self) -> bool:
        """Return whether only `set_epoch` changes the order, as with a `DistributedSampler`."""
        return any(hasattr(owner, "set_epoch") for owner in (self.batches, self.sampler))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the batch sampler and of its sampler, if they have one; another epoch drops a restored state."""
        if epoch != self._epoch:
            self._restored = None
        self._epoch = epoch
        for owner in (self.batches, self.sampler):
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches."""
        generator = getattr(self.sampler, "generator", None) or torch.default_generator
        restored, self._restored = self._restored, None
        before = generator.get_state()
        if restored is not None:
            generator.set_state(restored)
        self._started_with = generator.get_state()
        batches = iter(self.batches)
        first = next(batches, None)  # the order is drawn here
        if restored is not None:
            generator.set_state(before)
        if first is not None:
            yield first
            yield from batches
