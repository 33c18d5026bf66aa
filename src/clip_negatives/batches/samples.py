"""A data set of samples with their ids; the error for an unreadable sample names its row and its image file."""

from __future__ import annotations

import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset

from clip_negatives.batches.batch_sampler import ELSEWHERE
from clip_negatives.dataset.images import check_regular
from clip_negatives.errors import DataError

FILES = ("images", "image_paths")  # attributes of data sets that list image files; open_clip's csv data have `images`


class IndexedDataset(Dataset[Any]):
    """Samples with their ids, ``(sample, id)``; an unreadable or unexpected sample becomes a `DataError`."""

    def __init__(self, dataset: Any, identity: Callable[[Any, int], str | None] | None = None) -> None:
        self.dataset, self._identity = dataset, identity

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == ELSEWHERE:
            return DataError(
                "The loader was split among the processes again: this process reads a batch of another process. Use "
                "accelerator.prepare(loader) without split_batches and dispatch_batches, or iterate over the loader itself."
            ), index
        try:
            self._check_file(index)
            return self._checked(self.dataset[int(index)], index), index
        except Exception as error:
            if not is_unreadable(error):
                raise
            return self.unreadable(index, error), index

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        """Return the samples of a batch, read together if the data set supports that, as in Hugging Face's data sets."""
        read = getattr(self.dataset, "__getitems__", None)
        if read is None or ELSEWHERE in indices:
            return [self[index] for index in indices]
        try:
            for index in indices:
                self._check_file(index)
            samples = read(list(map(int, indices)))
        except Exception as error:
            if not is_unreadable(error):
                raise
            return [self[index] for index in indices]  # one by one, to name the sample in the error
        return [(self._checked(sample, index), index) for sample, index in zip(samples, indices, strict=True)]

    def unreadable(self, index: int, error: Exception) -> DataError:
        """Return the error for a sample that cannot be read because of `error`."""
        file = listed_file(self.dataset, index) or file_of_row(self.dataset, index)
        reason = getattr(error, "strerror", None) or error
        place, reason = ("counted from 0", error) if file is None else (f"counted from 0, {file}", reason)
        return DataError(f"Sample {index} ({place}) cannot be read: {reason}. Repair or remove it.")

    def _check_file(self, index: int) -> None:
        """Raise OSError if the image of a sample is a pipe or a device."""
        with suppress(FileNotFoundError):  # the data set may look for the file in another folder
            check_regular(listed_file(self.dataset, index))

    def _checked(self, sample: Any, index: int) -> Any:
        """Return the sample, or a `DataError` if it is not the sample that was clustered as `index`."""
        fault = None if self._identity is None else self._identity(sample, index)
        return sample if fault is None else DataError(fault)


class FailedBatch:
    """Placeholder for a batch that could not be made. Every use of it raises its error.

    If a worker raised the error, torch would hide it in the text of a traceback. This object carries it to the training loop.
    """

    def __init__(self, error: DataError) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        raise self.error

    def __getitem__(self, place: Any) -> Any:
        raise self.error

    def keys(self) -> Any:
        """Raise the error."""
        raise self.error

    def to(self, *options: Any, **named: Any) -> Any:
        """Raise the error; accelerate calls this to move the batch."""
        raise self.error


def is_unreadable(error: Exception) -> bool:
    """Return whether a file could not be read: `error` is an OSError, or was raised while Pillow opened or decoded an image."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name in ("open", "load"))
    return isinstance(error, OSError) or any(frame.f_globals.get("__name__", "").startswith("PIL.") for frame in frames)


def listed_file(dataset: Any, index: int) -> str | None:
    """Return the image file of a sample, if the data set lists its files; also within a `Subset` or a `ConcatDataset`."""
    dataset, index = innermost(dataset, index)
    for name in FILES:
        files: Any = getattr(dataset, name, None)
        if isinstance(files, list | tuple) and index < len(files) and isinstance(files[index], str | Path):
            return str(files[index])
    return None


def file_of_row(dataset: Any, index: int) -> str | None:
    """Return the path in an image column of a ``datasets.Dataset``; slow, because other columns of the row are read too."""
    dataset, index = innermost(dataset, index)
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "with_format"):
        return None
    row: dict[str, Any] = dataset.with_format("arrow")[index].to_pylist()[0]
    paths = (value.get("path") for value in row.values() if isinstance(value, dict))
    return next((path for path in paths if isinstance(path, str)), None)


def innermost(dataset: Any, index: int) -> tuple[Any, int]:
    """Return the data set within a `Subset` or `ConcatDataset` that has sample `index`, and the place of the sample in it."""
    while isinstance(dataset, Subset | ConcatDataset):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        else:
            part = bisect_right(dataset.cumulative_sizes, index)
            dataset, index = dataset.datasets[part], index - ([0, *dataset.cumulative_sizes][part])
    return dataset, index
