"""A loader with the batches of a sampler; each batch has the ids of its samples, for the loss.

With the ids of another batch, the loss would weight the wrong pairs without an error. So workers put the ids into the batch,
and the loader yields ``(batch, samples)``: even with prefetching, a batch keeps its own ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from clip_negatives.batches.batch_sampler import FixedOrder, NegativeBatches
from clip_negatives.batches.collate import IndexedCollate
from clip_negatives.batches.extras import Additions, Collate, Tokenize
from clip_negatives.batches.extras_dataset import ExtrasDataset, flattened
from clip_negatives.batches.native_order import NativeOrder
from clip_negatives.batches.samples import FailedBatch, IndexedDataset
from clip_negatives.errors import DataError, InputError
from clip_negatives.interfaces import NegativeSampler, ObservingSampler
from clip_negatives.printing import warn
from clip_negatives.sampling import name_of

OF_WORKERS = ("num_workers", "prefetch_factor", "persistent_workers", "worker_init_fn", "multiprocessing_context", "in_order")
KEPT = (*OF_WORKERS, "pin_memory", "timeout", "generator")  # `DataLoader` settings that are kept


class IndexedLoader(DataLoader[Any]):
    """A map-style `DataLoader` with the batches of a `NegativeSampler`, yielding ``(batch, samples)``.

    All other settings of the loader are kept. Iterators are independent of each other. An iterator reads the epoch when its
    first batch is fetched, so the epoch can be set after ``iter(loader)``.

    The loader yields the batches of this process. Its `batch_sampler` yields those of all processes, because ``accelerate``
    splits them, see `NegativeBatches`.

    Args:
        loader: the loader to replace.
        sampler: the sampler of the batches of this process.
        tokenize: tokenizer of the captions that the sampler adds or replaces.
        order: the batches of `loader`, if the sampler yields them.
        identity: returns why a sample is not the clustered sample of its id, or None.
        process: rank of this process and number of processes; (0, 1) if all processes have the same batches.

    Attributes:
        spec: sampler with all its options, for `state_dict`; empty if unknown.
    """

    batch_sampler: NegativeBatches
    spec: str = ""

    def __init__(
        self,
        loader: DataLoader[Any],
        sampler: NegativeSampler,
        tokenize: Tokenize | None = None,
        order: NativeOrder | None = None,
        identity: Callable[[Any, int], str | None] | None = None,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        if loader.batch_sampler is None:
            raise DataError("The loader has no batch sampler. Create it with a map-style data set and with batch_size=.")
        indexed = IndexedDataset(loader.dataset, identity)
        dataset, finish = _with_additions(indexed, sampler, tokenize)
        native: Any = loader.batch_sampler
        size = loader.batch_size or getattr(native, "batch_size", None)
        drop_last = order is None or bool(getattr(native, "drop_last", False))
        fixed_size = size if drop_last or process[1] == 1 else None
        batches = NegativeBatches(sampler, len(indexed), fixed_size, drop_last, *process)
        options: dict[str, Any] = {name: getattr(loader, name) for name in KEPT}
        collate = IndexedCollate(loader.collate_fn, indexed.unreadable, finish)
        super().__init__(dataset, batch_sampler=batches, collate_fn=collate, **options)
        attributes = {"batch_size": size, "drop_last": drop_last, "sampler": FixedOrder(batches)}
        for name, value in attributes.items():  # `DataLoader` has no values for them if it gets a batch sampler
            object.__setattr__(self, name, value)
        self._order = order
        self._place = 0, 0  # epoch of the newest iteration, and number of batches that it yielded
        self._is_running = False
        self._finished: int | None = None  # epoch of the last iteration that ended
        self._newest = object()

    @property
    def negatives(self) -> NegativeSampler:
        """Return the negative sampler."""
        return self.batch_sampler.negatives

    @property
    def epoch(self) -> int:
        """Return the epoch of the next iteration."""
        return self.batch_sampler.epoch

    @property
    def epochs(self) -> int | None:
        """Return the number of epochs of the training, from which its progress follows; None if unknown."""
        return self.batch_sampler.epochs

    @epochs.setter
    def epochs(self, epochs: int | None) -> None:
        self.batch_sampler.epochs = epochs

    def use(self, sampler: NegativeSampler) -> None:
        """Use another sampler from the next iteration on; it must make the same additions as the present one."""
        present, new = Additions.of(self.negatives), Additions.of(sampler)
        if present != new:
            raise InputError(
                f"The loader has a sampler with {present!r}, the new sampler has {new!r}. Attach the loader again."
            )
        self.batch_sampler.negatives = sampler
        sampler.set_epoch(self.epoch)

    def __len__(self) -> int:
        return len(self.negatives)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield ``(batch, samples)`` of the epoch; a sample whose file is missing or damaged is a `DataError`."""
        self._warn_of_repetition()
        yield from self.counted(self._own_batches)

    def _own_batches(self) -> Iterator[Any]:
        self._newest = iteration = object()
        with self.batch_sampler.of_this_process():
            batches = super().__iter__()
        for batch, samples in batches:
            if isinstance(batch, FailedBatch):
                raise batch.error
            if self._newest is not iteration and self.persistent_workers:
                raise InputError("persistent_workers=True allows one iterator at a time. Set persistent_workers=False.")
            yield batch, samples

    def counted(self, read: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """Yield what `read` returns, and count it in `state_dict`: the batches of this loader, read by another loader.

        accelerate reads the batches with a loader of its own, see `clip_negatives.integrations.accelerate`.
        """
        epoch, skip = self.epoch, self.batch_sampler.skip
        self._place, self._is_running = (epoch, skip), True
        if 0 < skip >= len(self):  # nothing is left; torch's iterator would draw from the global generator
            self._skip_rest_of_epoch(epoch)
            return
        for position, item in enumerate(read(), skip + 1):
            self._place = epoch, position
            yield item
        self._finished, self._is_running = epoch, False

    def _skip_rest_of_epoch(self, epoch: int) -> None:
        self.batch_sampler.skip, self._finished, self._is_running = 0, epoch, False
        if self._order is not None:
            self._order.restore(None)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; drop the position of `load_state_dict` if it belongs to another epoch."""
        self.batch_sampler.set_epoch(epoch)
        if not self._is_running:
            self._place = epoch, self.batch_sampler.skip
        self._finished = None

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and the number of batches that the newest iterator has yielded; prefetched batches do not count.

        If the sampler learns, the state has its memory. At the end of an epoch, the number is the length of the loader. After a
        resume, this epoch yields no more batches.

        Raises:
            InputError: the loader has ``in_order=False``, so the yielded batches may not be the first ones.
        """
        if not self.in_order:
            raise InputError("A loader with in_order=False cannot be resumed. Create it with in_order=True.")
        epoch, batches = self._place
        if batches == 0 and not self._is_running:
            epoch = self.epoch  # accelerate, which reads the batches itself, sets the epoch of the batch sampler only
        state: dict[str, Any] = {"epoch": epoch, "batches": batches, "of": self._settings(batches)}
        if isinstance(self.negatives, ObservingSampler):
            state["learned"] = self.negatives.learned()
        return state if self._order is None or self._order.state is None else state | {"order": self._order.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the epoch; the next iteration skips the batches that were already yielded."""
        epoch, batches = state.get("epoch"), state.get("batches")
        settings = self._settings(batches)
        if not isinstance(epoch, int) or epoch < 0 or not isinstance(batches, int) or state.get("of") != settings:
            raise InputError(
                f"The state is not of this loader ({settings}), but of {state.get('of', 'something else')}. Resume with the "
                "same data, sampler, seed, batch size, number of processes and version of clip-negatives."
            )
        if isinstance(self.negatives, ObservingSampler) and "learned" not in state:
            raise InputError("The state has no memory of the sampler, which learns. Resume with the state of `state_dict`.")
        self._is_running = False
        self.set_epoch(epoch)
        self.batch_sampler.skip, self._place = batches, (epoch, batches)
        if isinstance(self.negatives, ObservingSampler):
            self.negatives.load_learned(state["learned"])
        if self._order is not None:
            self._order.restore(state.get("order"))

    def _settings(self, batches: object) -> str:
        """Return a text with the settings that determine the batches, apart from the epoch and the clusters.

        Within an epoch, they include the number of blocks in which the sampler plans it.
        """
        n_blocks = getattr(self.negatives, "n_blocks", 1)
        blocks = f", {n_blocks} blocks" if n_blocks > 1 and batches not in (0, len(self)) else ""
        context = getattr(self.negatives, "context", None)
        seed = f", seed {context.seed}, batch size {context.batch_size}" if context is not None else ""
        return f"{self.spec or name_of(self.negatives)} of {len(self.dataset)} samples, {len(self)} batches{seed}{blocks}"  # type: ignore[arg-type]

    def _warn_of_repetition(self) -> None:
        """Warn if training gets the batches of a completed epoch again, or if all processes get the same samples."""
        same_batches = self._order is None or self._order.needs_epoch
        if self._finished == self.epoch and (same_batches or self.epochs is not None):
            what = "with the same batches" if same_batches else "and so does the progress of the training"
            warn(f"Epoch {self.epoch} begins again, {what}. Call loader.set_epoch(epoch) before each epoch.", stacklevel=3)
        if self._order is not None and self._order.repeats_samples:
            warn(
                "Each process trains on all samples, because the loader has no DistributedSampler. Create it with "
                "sampler=DistributedSampler(dataset), or pass the loader of attach to accelerator.prepare.",
                stacklevel=3,
            )


def _with_additions(
    dataset: IndexedDataset, sampler: NegativeSampler, tokenize: Tokenize | None
) -> tuple[Dataset[Any], Callable[[Any], Any] | None]:
    """Return the data set with the additions of the sampler, and a function that flattens its batches."""
    if not (additions := Additions.of(sampler)):
        return dataset, None
    if tokenize is None and (additions.texts or additions.own_texts):
        raise InputError(f"{type(sampler).__name__} {additions} and needs a tokenizer: attach(..., tokenize=...).")
    return ExtrasDataset(dataset, tokenize, additions), partial(flattened, additions)


def rebuilt(loader: DataLoader[Any], dataset: Dataset[Any], batches: Any, collate: Collate) -> DataLoader[Any]:
    """Return a loader with another data set, batch sampler and collate function, and the other settings of `loader`."""
    options = {name: getattr(loader, name) for name in KEPT}
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **options)
