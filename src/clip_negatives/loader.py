"""Loaders that yield what they yielded before and hand the sample index of each batch to the loss.

The index of a batch must reach the loss together with its features, or weights go to the wrong pairs in silence. Here it
travels inside the batch, from the worker that reads the samples to the moment the batch is handed out, so that prefetching
workers cannot put it out of step. There is no global state: a loader and a loss share one `BatchIndex`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_negatives.errors import DataError, InputError
from clip_negatives.extra_texts import FlatCollate, TextBatches, TextsDataset, Tokenize, refuse_texts, texts_per_image
from clip_negatives.indexing import IndexedCollate, IndexedDataset, rebuilt
from clip_negatives.interfaces import NegativeSampler


class BatchIndex:
    """Hold the sample indices of the batches that the next call of the loss is about.

    Args:
        batches: how many batches the loss sees at once: 1, or the number of micro-batches that gradient accumulation with
            full negatives concatenates, in their order.
        observe: called with the index of every batch as it is handed out.

    Attributes:
        handed_out: batches so far. A loss that is called twice at one count is called for the same batches again.
    """

    def __init__(self, batches: int = 1, observe: Callable[[Tensor], None] | None = None) -> None:
        self.handed_out = 0
        self._window: deque[Tensor] = deque(maxlen=batches)
        self._texts: deque[Tensor] = deque(maxlen=batches)
        self._observe = observe

    def push(self, index: Tensor, text_ids: Tensor | None = None) -> None:
        """Take the index of a batch that is now handed out, int64, shape (B,), and what `text_ids` is to return of it."""
        self.handed_out += 1
        self._window.append(index)
        if text_ids is not None:
            self._texts.append(text_ids)
        if self._observe is not None:
            self._observe(index)

    def text_ids(self) -> Tensor:
        """Return a number for each text of the window, the same for equal texts, int64, shape (batches * B, 1 + E).

        Each sample's own text, and the E texts that a sampler added with it.

        Raises:
            InputError: no batch with extra texts was handed out yet.
        """
        if not self._texts:
            raise InputError("Expected a batch with extra texts before the loss is called, got none. Iterate over the loader.")
        return torch.cat(tuple(self._texts))

    def __call__(self) -> Tensor:
        """Return the indices of the window, int64, shape (batches * B,).

        Raises:
            InputError: no batch was handed out yet.
        """
        if not self._window:
            raise InputError("Expected a batch from the wrapped loader before the loss is called, got none. Iterate over it.")
        return torch.cat(tuple(self._window))


class IndexedLoader:
    """Iterate over a map-style `DataLoader` in the batches of a `NegativeSampler`.

    It yields what the loader yields, and pushes the index of each batch to `batch_index` just before. All other settings of
    the loader (workers, pinning, collation, ...) are kept. No worker starts before the first batch is asked for, so that the
    epoch may be chosen after the iterator is made.

    Args:
        loader: the loader of the training loop.
        sampler: the batches to take.
        batch_index: where the loss reads the index.
        tokenize: the tokenizer of the data set, for a sampler that adds texts; the loader then yields ``(images, texts)`` with
            those of each text behind it.
        index_in_batch: yield ``(batch, index)``, for a loop that may ask for a batch before the loss has seen the last one.

    Raises:
        DataError: the loader reads a stream, whose batches no sampler can choose.
        InputError: the sampler adds texts and there is no tokenizer.
        UnsupportedError: the sampler adds texts, whose numbers find no place in ``(batch, index)``.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        sampler: NegativeSampler,
        batch_index: BatchIndex,
        tokenize: Tokenize | None = None,
        *,
        index_in_batch: bool = False,
    ) -> None:
        if loader.batch_sampler is None:
            raise DataError(
                "Expected a loader over samples that can be asked for by index (such as csv data), got a stream. "
                "Keep the stream's own order with the sampler in_batch."
            )
        self.batch_index = batch_index
        self.index_in_batch = index_in_batch
        self._native, self._tokenize = loader, tokenize
        self._position = self._skip = 0
        self.use(sampler)

    def use(self, sampler: NegativeSampler) -> None:
        """Take the batches of another sampler, from the next iteration on; raises as the constructor does."""
        if self.index_in_batch:
            refuse_texts(sampler, "a loader that yields (batch, index)")
        self.sampler = sampler
        self._batches = _LaterBatches(sampler)
        self._loader = _with_batches(self._native, sampler, self._batches, self._tokenize)

    @property
    def dataset(self) -> Any:
        """Return the data set of the training loop."""
        return self._native.dataset

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the epoch.

        Raises:
            DataError: a file of a sample is missing or damaged.
        """
        self._batches.skip, self._skip = self._skip, 0
        self._position = self._batches.skip
        for batch, index in self._loader:
            if isinstance(batch, DataError):
                raise batch
            if index.ndim == 2:  # beside the index the numbers of the texts
                self.batch_index.push(index[:, 0], index[:, 1:])
            else:
                self.batch_index.push(index)
            self._position += 1
            yield (batch, index) if self.index_in_batch else batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the sampler."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were handed out, 0 at its end; what workers have read ahead does not count."""
        return {"batches": self._position % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out in the next iteration the batches that were handed out; the epoch is chosen by `set_epoch`.

        Raises:
            InputError: an epoch has not so many batches.
        """
        batches = state.get("batches")
        if not isinstance(batches, int) or not 0 <= batches < len(self):
            raise InputError(f"Expected a state of 0 .. {len(self) - 1} batches, got {state!r}. Resume with the same data.")
        self._position = self._skip = batches


class _LaterBatches:
    """Yield the batches of a sampler after the first `skip`."""

    def __init__(self, sampler: NegativeSampler) -> None:
        self.sampler, self.skip = sampler, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.sampler), self.skip, None)


def _with_batches(
    loader: DataLoader[Any], sampler: NegativeSampler, batches: Any, tokenize: Tokenize | None
) -> DataLoader[Any]:
    """Return a loader like `loader` whose samples carry their index, in `batches`, with the texts that `sampler` adds."""
    dataset: Dataset[Any] = IndexedDataset(loader.dataset)
    collate: Callable[[list[Any]], Any] = loader.collate_fn
    each = texts_per_image(sampler)
    if each:
        if tokenize is None:
            raise InputError(
                f"Expected a tokenizer for {type(sampler).__name__}, which adds texts, got none. "
                "Give attach(..., tokenize=...)."
            )
        dataset, collate = TextsDataset(dataset, tokenize, each), FlatCollate(collate)
        batches = TextBatches(sampler, batches)
    return rebuilt(loader, dataset, batches, IndexedCollate(collate))
