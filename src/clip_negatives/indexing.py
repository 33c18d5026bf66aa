"""Samples that carry their index from the worker that reads them into the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_negatives.errors import DataError

Collate = Callable[[list[Any]], Any]
"""Makes a batch of samples."""


class IndexedDataset(Dataset[Any]):
    """Give each sample its index, ``(sample, index)``; a file that is missing or damaged gives an error in its place."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            return self.dataset[index], index
        except OSError as error:  # a file that is missing or damaged: pillow's errors are of this class
            return DataError(f"Expected a sample {self._named(index)} that can be read, got: {error}. Repair it."), index

    def _named(self, index: int) -> str:
        """Return how to find a sample: by number, and by file where the data set lists files, as open_clip's does."""
        files = getattr(self.dataset, "images", None)
        return f"{index} (counted from 0{f', {files[index]}' if isinstance(files, list) else ''})"

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        """Return the samples of a batch, all at once where the data set reads them so, as Hugging Face's do."""
        read = getattr(self.dataset, "__getitems__", None)
        if read is None:
            return [self[index] for index in indices]
        return list(zip(read(indices), indices, strict=True))


class IndexedCollate:
    """Collate the samples as before, and their indices beside them; an error of one of them stands for the batch.

    As a value, and not raised in the worker, or torch would wrap its message into a traceback.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, samples: list[tuple[Any, Any]]) -> tuple[Any, Tensor]:
        """Return ``(batch, index)``."""
        index = torch.tensor([index for _, index in samples])
        error = next((sample for sample, _ in samples if isinstance(sample, DataError)), None)
        return error or self.collate([sample for sample, _ in samples]), index


class KeyedCollate:
    """Collate the samples to a mapping as before, and put their indices into it.

    Args:
        collate: makes a mapping of samples.
        key: under which the indices stand, int64, shape (B,).
    """

    def __init__(self, collate: Collate, key: str) -> None:
        self.collate = IndexedCollate(collate)
        self.key = key

    def __call__(self, samples: list[tuple[Any, Any]]) -> dict[str, Any]:
        """Return the batch with its index.

        Raises:
            DataError: a sample cannot be read.
        """
        batch, index = self.collate(samples)
        if isinstance(batch, DataError):
            raise batch
        return {**batch, self.key: index}


def rebuilt(loader: DataLoader[Any], dataset: Dataset[Any], batches: Any, collate: Collate) -> DataLoader[Any]:
    """Return a loader with the workers, pinning and generator of `loader` over other samples, batches and collation."""
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
    }
    if loader.num_workers > 0:
        kept["prefetch_factor"] = loader.prefetch_factor
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **kept)
