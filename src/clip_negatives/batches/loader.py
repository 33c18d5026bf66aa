"""A loader with the batches of a sampler; each batch has the ids of its samples, for the loss.

With the ids of another batch, the loss would weight the wrong pairs without an error. So workers put the ids into the batch,
and the loader yields ``(batch, samples)``: even with prefetching, a batch keeps its own ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from clip_negatives.batches.collate import IndexedCollate
from clip_negatives.batches.extra_texts import Collate, LaterBatches, TextsDataset, Tokenize, flat_collate, texts_per_image
from clip_negatives.batches.native_order import NativeOrder
from clip_negatives.dataset.images import check_regular
from clip_negatives.errors import DataError, InputError
from clip_negatives.interfaces import NegativeSampler
from clip_negatives.printing import warn

OF_WORKERS = ("num_workers", "prefetch_factor", "persistent_workers", "worker_init_fn", "multiprocessing_context", "in_order")
KEPT = (*OF_WORKERS, "pin_memory", "timeout", "generator")  # `DataLoader` settings that `rebuilt` keeps


class IndexedLoader:
    """A map-style `DataLoader` with the batches of a `NegativeSampler`, yielding ``(batch, samples)``.

    All other settings of the loader are kept. Iterators are independent of each other. An iterator reads the epoch when its
    first batch is fetched, so the epoch can be set after ``iter(loader)``.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        sampler: NegativeSampler,
        tokenize: Tokenize | None = None,
        order: NativeOrder | None = None,
        identity: Callable[[Any, int], str | None] | None = None,
    ) -> None:
        if loader.batch_sampler is None:
            raise DataError("The loader has no batch sampler. Create it with a map-style data set and with batch_size=.")
        self.dataset = loader.dataset
        self._native, self._tokenize, self._order, self._identity = loader, tokenize, order, identity
        self.epoch = self._skip = 0
        self._place = 0, 0  # epoch of the newest iteration, and number of batches that it yielded
        self._is_running = False
        self._finished: int | None = None  # epoch of the last iteration that ended
        self._newest = object()
        self.use(sampler)

    def use(self, sampler: NegativeSampler) -> None:
        """Use another sampler from the next iteration on; a sampler that adds captions needs a tokenizer."""
        self.sampler, self._batches = sampler, LaterBatches(sampler, len(self.dataset))  # type: ignore[arg-type]
        dataset: Dataset[Any] = IndexedDataset(self.dataset, self._identity)
        collate: Collate = self._native.collate_fn
        if per_sample := texts_per_image(sampler):
            if self._tokenize is None:
                raise InputError(f"{type(sampler).__name__} adds captions and needs a tokenizer: attach(..., tokenize=...).")
            dataset, collate = TextsDataset(dataset, self._tokenize, per_sample), partial(flat_collate, collate)
        self._loader = rebuilt(self._native, dataset, self._batches, IndexedCollate(collate))

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        """Yield ``(batch, samples)`` of the epoch; a sample whose file is missing or damaged is a `DataError`."""
        self._warn_of_same_epoch()
        epoch, skip, self._skip = self.epoch, self._skip, 0
        self._batches.skip, self._place, self._is_running = skip, (epoch, skip), True
        self._newest = iteration = object()
        for position, (batch, samples) in enumerate(self._loader, skip + 1):
            if isinstance(batch, DataError):
                raise batch
            if self._newest is not iteration and self._native.persistent_workers:
                raise InputError("persistent_workers=True allows one iterator at a time. Set persistent_workers=False.")
            self._place = epoch, position
            yield batch, samples
        self._finished, self._is_running = epoch, False

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; drop the position of `load_state_dict` if it belongs to another epoch."""
        if epoch != self.epoch:
            self._skip = 0
        if not self._is_running:
            self._place = epoch, self._skip
        self.epoch, self._finished = epoch, None
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and the number of batches that the newest iterator has yielded; prefetched batches do not count.

        At the end of an epoch, the number is the length of the loader. After a resume, this epoch yields no more batches.

        Raises:
            InputError: the loader has ``in_order=False``, so the yielded batches may not be the first ones.
        """
        if not getattr(self._native, "in_order", True):
            raise InputError("A loader with in_order=False cannot be resumed. Create it with in_order=True.")
        state: dict[str, Any] = {"epoch": self._place[0], "batches": self._place[1], "of": self._settings()}
        return state if self._order is None or self._order.state is None else state | {"order": self._order.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the epoch; the next iteration skips the batches that were already yielded."""
        epoch, batches, settings = state.get("epoch"), state.get("batches"), self._settings()
        if not isinstance(epoch, int) or epoch < 0 or not isinstance(batches, int) or state.get("of") != settings:
            raise InputError(
                f"The state is not of this loader ({settings}), but of {state.get('of', 'something else')}. Resume with the "
                "same data, sampler, seed, batch size and number of processes."
            )
        self._is_running = False
        self.set_epoch(epoch)
        self._skip, self._place = batches, (epoch, batches)
        if self._order is not None:
            self._order.restore(state.get("order"))

    def _settings(self) -> str:
        """Return a text with the settings that determine the batches, apart from the epoch and the clusters."""
        context = getattr(self.sampler, "context", None)
        seed = f", seed {context.seed}, batch size {context.batch_size}" if context is not None else ""
        return f"{type(self.sampler).__name__} of {len(self.dataset)} samples, {len(self)} batches{seed}"  # type: ignore[arg-type]

    def _warn_of_same_epoch(self) -> None:
        """Warn if this epoch was completed before: training would get the same batches again."""
        if self._finished == self.epoch and (self._order is None or self._order.needs_epoch):
            warn(
                f"Epoch {self.epoch} begins again, with the same batches. Call loader.set_epoch(epoch) before each epoch.",
                stacklevel=3,
            )


class IndexedDataset(Dataset[Any]):
    """Samples with their ids, ``(sample, id)``; an unreadable or unexpected sample becomes a `DataError`."""

    def __init__(self, dataset: Any, identity: Callable[[Any, int], str | None] | None = None) -> None:
        self.dataset, self._identity = dataset, identity

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file = self._file(index)
        try:
            with suppress(FileNotFoundError):  # the data set may look for the file in another folder
                check_regular(file)
            return self._checked(self.dataset[index], index), index
        except OSError as error:  # Pillow's errors are OSErrors too
            place, reason = (f"counted from 0, {file}", error.strerror or error) if file else ("counted from 0", error)
            return DataError(f"Sample {index} ({place}) cannot be read: {reason}. Repair or remove it."), index

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        """Return the samples of a batch, read together if the data set supports that, as in Hugging Face's data sets."""
        read = getattr(self.dataset, "__getitems__", None)
        if read is None:
            return [self[index] for index in indices]
        try:
            samples = read(indices)
        except OSError:
            return [self[index] for index in indices]  # one by one, to name the sample in the error
        return [(self._checked(sample, index), index) for sample, index in zip(samples, indices, strict=True)]

    def _file(self, index: int) -> str | None:
        """Return the image file of a sample, if the data set lists its files, as open_clip's csv data do."""
        files: Any = getattr(self.dataset, "images", None)
        is_listed = isinstance(files, list) and index < len(files) and isinstance(files[index], str)
        return files[index] if is_listed else None

    def _checked(self, sample: Any, index: int) -> Any:
        """Return the sample, or a `DataError` if it is not the sample that was clustered as `index`."""
        fault = None if self._identity is None else self._identity(sample, index)
        return sample if fault is None else DataError(fault)


def rebuilt(loader: DataLoader[Any], dataset: Dataset[Any], batches: Any, collate: Collate) -> DataLoader[Any]:
    """Return a loader with the workers, pinning and generator of `loader`, and another data set, sampler and collation."""
    options = {name: getattr(loader, name) for name in KEPT}
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **options)
