"""Collate samples with their ids; a collate function that changes the order of its samples is an error."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from clip_negatives.batches.batch_sampler import FirstId
from clip_negatives.batches.extras import Collate
from clip_negatives.batches.samples import FailedBatch, is_unreadable
from clip_negatives.errors import DataError
from clip_negatives.printing import warn
from clip_negatives.step import BatchSamples, Position

COMPARED = 32  # number of values that are compared between a sample and its row of the batch
Leaves = dict[Any, Any]  # values of a nested sample or batch, by their path of keys and positions


class IndexedCollate:
    """Collate function for items ``(sample, id)`` or ``(sample, id, text ids)``; returns ``(batch, samples)``.

    If a sample is a `DataError`, or `collate` cannot read its image, the batch is a `FailedBatch`.

    The order of every batch is compared with its samples. If `collate` computes new values, the samples cannot be recognised in
    the batch. Then the first batch of each process is also collated in reverse order. If that does not show the order either,
    a warning is issued.

    Args:
        collate: the collate function of the samples.
        unreadable: returns the error for the id of a sample that `collate` cannot read because of an exception.
        finish: changes the batch after the check of its order, or returns an error.
    """

    def __init__(
        self,
        collate: Collate,
        unreadable: Callable[[int, Exception], DataError],
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        self.collate, self.unreadable, self.finish = collate, unreadable, finish
        self._keeps_order: bool | None = None  # result for the first batch in reverse order; None before it

    def __call__(self, items: list[tuple[Any, ...]]) -> tuple[Any, BatchSamples]:
        """Return the batch and its samples."""
        samples, ids, *text_ids = zip(*items, strict=True)
        texts = torch.tensor(text_ids[0], dtype=torch.int64) if text_ids else None
        position = Position.of(*ids[0].position) if isinstance(ids[0], FirstId) else None
        identity = BatchSamples(ids=torch.tensor(ids, dtype=torch.int64), text_ids=texts, position=position)
        error = next((sample for sample in samples if isinstance(sample, DataError)), None)
        batch = self._collated(list(samples), ids) if error is None else error
        if self.finish is not None and not isinstance(batch, DataError):
            batch = self.finish(batch)
        return FailedBatch(batch) if isinstance(batch, DataError) else batch, identity

    def _collated(self, samples: list[Any], ids: tuple[int, ...]) -> Any:
        """Return the batch, or an error."""
        leaves, copies = [_leaves(sample) for sample in samples], [copy.copy(sample) for sample in samples]
        try:
            batch = self.collate(samples)
        except Exception as error:
            if not is_unreadable(error):
                raise
            return self._unreadable_sample(copies, ids, error)
        if isinstance(batch, DataError):
            return batch
        in_order = keeps_order(leaves, batch)
        if in_order is None and self._keeps_order is None:
            self._keeps_order = follows_order(self.collate, copies)
            if self._keeps_order is None:
                self._warn()
        if in_order is False or (in_order is None and not self._keeps_order):
            fault = "The collate function changes the order of its samples, so the weights would reach the wrong pairs."
            return DataError(f"{fault} Keep the order in collate_fn.")
        return batch

    def _unreadable_sample(self, samples: list[Any], ids: tuple[int, ...], error: Exception) -> DataError:
        """Return the error of the first sample that cannot be collated alone; raise `error` if there is none."""
        faults = ((index, self._fault(sample)) for sample, index in zip(samples, ids, strict=True))
        unreadable = next((self.unreadable(index, fault) for index, fault in faults if fault is not None), None)
        if unreadable is None:
            raise error
        return unreadable

    def _fault(self, sample: Any) -> Exception | None:
        """Return why a sample cannot be read when it is collated alone, or None."""
        try:
            self.collate([sample])
        except Exception as fault:
            return fault if is_unreadable(fault) else None
        return None

    def _warn(self) -> None:
        self._keeps_order = True
        worker = get_worker_info()
        if worker is None or worker.id == 0:
            warn(
                "Could not check that collate_fn keeps the order of its samples. If it does not, the weights reach the wrong "
                "pairs.",
                stacklevel=2,
            )


def keeps_order(samples: list[Leaves], batch: Any) -> bool | None:
    """Return whether row i of a batch is sample i; None if the batch does not have the values of the samples."""
    columns, results = _leaves(batch), list[bool]()
    for name in samples[0].keys() & columns.keys():
        column = columns[name]
        values = [_first_values(sample.get(name)) for sample in samples]
        if not hasattr(column, "__len__") or len(column) != len(samples) or None in values or len(set(values)) < len(values):
            continue  # the order of equal samples cannot be seen
        places = {value: place for place, value in enumerate(values)}
        order = [places.get(_first_values(row, like=sample.get(name))) for row, sample in zip(column, samples, strict=True)]
        if None not in order:
            results.append(order == list(range(len(samples))))
    return all(results) if results else None


def follows_order(collate: Collate, samples: list[Any]) -> bool | None:
    """Return whether reversed samples give a reversed batch; None if that cannot be seen, for example with random values."""
    try:
        with _untouched_randomness() as restart:
            forward = _rows(collate([copy.copy(sample) for sample in samples]), len(samples))
            restart()
            backward = _rows(collate([copy.copy(sample) for sample in reversed(samples)]), len(samples))
    except Exception:
        return None
    pairs = [(rows, reverse) for rows, reverse in zip(forward, backward, strict=False) if rows.shape == reverse.shape]
    if any(torch.equal(rows.flip(0), reverse) for rows, reverse in pairs if not torch.equal(rows.flip(0), rows)):
        return True
    counts = [(Counter(map(_first_values, rows)), Counter(map(_first_values, reverse))) for rows, reverse in pairs]
    permuted = bool(counts) and all(forward_count == backward_count for forward_count, backward_count in counts)
    return False if permuted and any(len(count) > 1 for count, _ in counts) else None


def _leaves(value: Any, name: Any = ()) -> Leaves:
    """Return the values in nested mappings, tuples and lists, by path; a list of strings or numbers is one value."""
    if isinstance(value, Mapping):
        return {path: leaf for key, part in value.items() for path, leaf in _leaves(part, (*name, key)).items()}
    if isinstance(value, tuple | list) and not all(isinstance(part, str | int | float) for part in value):
        return {path: leaf for key, part in enumerate(value) for path, leaf in _leaves(part, (*name, key)).items()}
    return {name: value}


def _first_values(value: Any, like: Any = None) -> tuple[Any, ...] | str | None:
    """Return the first values of a tensor, array, number or string; at most as many as `like` has: a row may have padding."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float | np.number):
        return (float(value),)
    if not isinstance(value, Tensor | np.ndarray) or (isinstance(value, Tensor) and not _is_plain(value)):
        return None
    count = COMPARED if not isinstance(like, Tensor | np.ndarray) else min(COMPARED, int(np.prod(like.shape)))
    flat = value.reshape(-1)[:count] if value.ndim else value.reshape(1)
    return tuple(float(number) for number in flat.tolist())


def _rows(batch: Any, n: int) -> list[Tensor]:
    """Return the tensors of a batch that have a row for each of n samples."""
    tensors = [leaf for leaf in _leaves(batch).values() if isinstance(leaf, Tensor) and _is_plain(leaf)]
    return [tensor for tensor in tensors if tensor.ndim > 0 and len(tensor) == n]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


@contextmanager
def _untouched_randomness() -> Iterator[Any]:
    """Restore the global random generators at the end of the block; the yielded function restores them at once."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - collate functions may use it

    def restart() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])

    try:
        yield restart
    finally:
        restart()
