"""Loaders that yield what they yielded before and hand the sample index of each batch to the loss.

The index of a batch must reach the loss together with its features, or weights go to the wrong pairs in silence. Here it
travels inside the batch, from the worker that reads the samples to the moment the batch is handed out, so that prefetching
workers cannot put it out of step. There is no global state: a loader and a loss share one `BatchIndex`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_negatives.errors import DataError, InputError
from clip_negatives.extra_texts import FlatCollate, TextBatches, TextsDataset, Tokenize, texts_per_image
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


class _IndexedDataset(Dataset[Any]):
    """Give each sample its index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            return self.dataset[index], index
        except OSError as error:  # a file that is missing or damaged: pillow's errors are of this class
            return DataError(f"Expected a sample {index} (counted from 0) that can be read, got: {error}. Repair it."), index


class _IndexedCollate:
    """Collate the samples as before, and their indices beside them; an error of one of them stands for the batch.

    As a value, and not raised in the worker, or torch would wrap its message into a traceback.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[tuple[Any, Any]]) -> tuple[Any, Tensor]:
        index = torch.tensor([index for _, index in samples])
        error = next((sample for sample, _ in samples if isinstance(sample, DataError)), None)
        return error or self.collate([sample for sample, _ in samples]), index


class IndexedLoader:
    """Iterate over a map-style `DataLoader` in the batches of a `NegativeSampler`.

    It yields what the loader yields, and pushes the index of each batch to `batch_index` just before. All other settings of
    the loader (workers, pinning, collation, ...) are kept.

    Args:
        loader: the loader of the training loop.
        sampler: the batches to take.
        batch_index: where the loss reads the index.
        tokenize: the tokenizer of the data set, for a sampler that adds texts; the loader then yields ``(images, texts)`` with
            those of each text behind it.

    Raises:
        DataError: the loader reads a stream, whose batches no sampler can choose.
        InputError: the sampler adds texts and there is no tokenizer.
    """

    def __init__(
        self, loader: DataLoader[Any], sampler: NegativeSampler, batch_index: BatchIndex, tokenize: Tokenize | None = None
    ) -> None:
        if loader.batch_sampler is None:
            raise DataError(
                "Expected a loader over samples that can be asked for by index (such as csv data), got a stream. "
                "Keep the stream's own order with the sampler in_batch."
            )
        self.sampler = sampler
        self.batch_index = batch_index
        self._loader = _with_batches(loader, sampler, tokenize)

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the epoch.

        Raises:
            DataError: a file of a sample is missing or damaged.
        """
        for batch, index in self._loader:
            if isinstance(batch, DataError):
                raise batch
            if index.ndim == 2:  # beside the index the numbers of the texts
                self.batch_index.push(index[:, 0], index[:, 1:])
            else:
                self.batch_index.push(index)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the sampler."""
        self.sampler.set_epoch(epoch)


class KeyedLoader:
    """Iterate over a stream of ``(*batch, keys)`` and turn the keys into sample indices for the loss.

    Args:
        loader: yields tuples whose last entry lists the keys of the samples.
        rows: index of each key, or None where nothing looks samples up (then -1 stands for each).
        batch_index: where the loss reads the index.
    """

    def __init__(self, loader: Iterable[Any], rows: Mapping[str, int] | None, batch_index: BatchIndex) -> None:
        self._loader = loader
        self._rows = rows
        self.batch_index = batch_index

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches without their keys.

        Raises:
            DataError: a sample has a key that the clusters do not know.
        """
        for *batch, keys in self._loader:
            self.batch_index.push(self._index(keys))
            yield tuple(batch)

    def _index(self, keys: list[str]) -> Tensor:
        if self._rows is None:
            return torch.full((len(keys),), -1)
        unknown = next((key for key in keys if key not in self._rows), None)
        if unknown is not None:
            raise DataError(
                f"Expected only samples that were clustered, got the key {unknown!r}, which the clusters folder does not "
                "hold. Prepare it from the shards that are trained on."
            )
        return torch.tensor([self._rows[key] for key in keys])


def _with_batches(loader: DataLoader[Any], sampler: NegativeSampler, tokenize: Tokenize | None) -> DataLoader[Any]:
    """Return a loader like `loader` whose samples carry their index and whose batches are those of `sampler`."""
    kept: dict[str, Any] = {
        name: getattr(loader, name)
        for name in (
            "num_workers",
            "pin_memory",
            "timeout",
            "worker_init_fn",
            "multiprocessing_context",
            "generator",
            "persistent_workers",
            "in_order",
        )
        if hasattr(loader, name)  # in_order came with torch 2.6
    }
    if loader.num_workers > 0:
        kept["prefetch_factor"] = loader.prefetch_factor
    dataset: Dataset[Any] = _IndexedDataset(loader.dataset)
    collate: Callable[[list[Any]], Any] = loader.collate_fn
    batches: Any = sampler
    each = texts_per_image(sampler)
    if each:
        if tokenize is None:
            raise InputError(
                f"Expected a tokenizer for {type(sampler).__name__}, which adds texts, got none. "
                "Give attach(..., tokenize=...)."
            )
        dataset, collate, batches = TextsDataset(dataset, tokenize, each), FlatCollate(collate), TextBatches(sampler)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_IndexedCollate(collate), **kept)
