"""Checks of every batch of a sampler: a faulty plugin must not train the model on wrong samples."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator

from clip_negatives.errors import PluginError
from clip_negatives.interfaces import NegativeSampler
from clip_negatives.plugin_code import no_exit
from clip_negatives.sampling import name_of

END = object()


def checked_batches(sampler: NegativeSampler, n_samples: int, skip: int = 0) -> Iterator[list[int]]:
    """Yield the batches of a sampler, except for the first `skip`.

    Raises:
        PluginError: a batch is empty or has an id that is not an integer within 0 .. n_samples-1, or the sampler ends the
            program. Unless the sampler yields the loop's own batches (``keeps_native_order``), it is also an error if a batch
            repeats an id, or if the number of batches differs from the length of the sampler.
    """
    is_native = getattr(sampler, "keeps_native_order", False)
    n_batches = None if is_native else len(sampler)
    with no_exit():
        after = getattr(sampler, "batches_after", None) if skip else None
        batches = itertools.islice(sampler, skip, None) if after is None else after(skip)
    for count in itertools.count(skip):
        with no_exit():
            batch = next(batches, END)
        if batch is END or count == n_batches:
            if n_batches is not None and (batch is not END or count < n_batches):
                number = f"only {count}" if batch is END else "more"
                raise _fault(sampler, f"yields {number} batches, and its length is {n_batches}")
            return
        ids = _integers(batch)
        if not ids or not 0 <= min(ids) <= max(ids) < n_samples:
            raise _fault(sampler, f"yields {_shortened(batch)} as batch {count}, not ids within 0 .. {n_samples - 1}")
        if not is_native and len(set(ids)) < len(ids):
            raise _fault(sampler, f"has a sample twice in batch {count}")
        yield ids


def _integers(batch: object) -> list[int] | None:
    if not isinstance(batch, Iterable):
        return None
    try:
        return [operator.index(index) for index in batch]
    except TypeError:
        return None


def _shortened(batch: object) -> str:
    text = repr(batch)
    return text if len(text) < 80 else f"{text[:80]} ..."


def _fault(sampler: NegativeSampler, fault: str) -> PluginError:
    return PluginError(f"The sampler {name_of(sampler)} {fault}. Repair the plugin.")
