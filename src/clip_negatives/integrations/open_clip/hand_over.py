"""Pass the samples of each batch from the loader to the loss, because open_clip's loop calls the loss without them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clip_negatives.errors import InputError
from clip_negatives.step import BatchSamples, Towers


class CurrentSamples:
    """Samples of the batches of one step; the loss gets them by calling this object.

    A step has `batches` batches, above 1 in gradient accumulation. open_clip's loop fetches all batches of a step, then calls
    the loss `batches` times, each time for all of them. Any other order is an error: the loss would get samples of other
    batches.
    """

    def __init__(self, batches: int = 1, observe: Callable[[BatchSamples], None] | None = None) -> None:
        self.handed_out = 0  # number of batches; while it stays the same, the loss is called for the same batches
        self.batches, self._observe = batches, observe
        self.start()

    def start(self) -> None:
        """Forget the batches of the previous epoch: the last of them may be too few for a step."""
        self._window: deque[BatchSamples] = deque(maxlen=self.batches)
        self._new = self._calls = 0  # batches since the last step, and calls of the loss for this step

    def push(self, samples: BatchSamples) -> None:
        """Add the samples of the batch that is handed out now, and call `observe` with them."""
        self.handed_out += 1
        self._new, self._calls = self._new + 1, 0
        self._window.append(samples)
        if self._observe is not None:
            self._observe(samples)

    @property
    def samples(self) -> BatchSamples:
        """Return the samples of the last batches as one batch."""
        return BatchSamples.concatenate(self._window)

    def __call__(self) -> BatchSamples:
        """Return `samples` for a call of the loss; InputError if the number of batches or calls does not fit a step."""
        self._calls += 1
        if self._new not in (0, self.batches) or self._calls > self.batches or len(self._window) < self.batches:
            raise InputError(
                f"The loop must fetch {self.batches} batches, then call the loss at most {self.batches} times. This is call "
                f"{self._calls}, with {self._new} batches fetched since the previous step, so the sample ids are unknown. In a "
                "loop of your own, pass them: loss(..., samples=samples)."
            )
        self._new = 0
        return self.samples


class HandOver:
    """A loader for open_clip's loop: yields the batches of a loader of ``(batch, samples)`` and pushes their samples.

    `as_batch` returns a batch in the form that the loop expects.

    Attributes:
        epoch: epoch of the next iteration.
        teacher: returns the features of a batch by another model; None without a teacher.
        num_batches: batches of an epoch, which open_clip reads.
        num_samples: samples of an epoch, which open_clip reads.
    """

    num_batches: int
    num_samples: int

    def __init__(self, loader: Iterable[Any], current: CurrentSamples, epochs: int, as_batch: Callable[[Any], Any]) -> None:
        self.loader, self.epoch, self._current, self._epochs, self._as_batch = loader, 0, current, epochs, as_batch
        self.teacher: Callable[[Any], Towers] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        self._current.start()
        for position, (batch, samples) in enumerate(self.loader):
            steps = self.num_batches // self._current.batches
            step = self.epoch * steps + position // self._current.batches
            samples = samples.at(step, self._epochs * steps, epoch=self.epoch)
            self._current.push(samples if self.teacher is None else samples.with_teacher(*self.teacher(batch)))
            yield self._as_batch(batch)
