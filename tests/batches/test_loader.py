"""The loader with the batches of a sampler: which samples, in which order, and how it resumes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.errors import DataError, InputError
from clip_negatives.interfaces import SamplingContext
from clip_negatives_plugins.in_batch.sampler import InBatch
from tests.batches.squares import Squares, planned, rows, wrapped


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_those_of_the_batch_however_far_ahead_batches_are_fetched(workers: int) -> None:
    found = rows(wrapped(DataLoader(Squares(), batch_size=4, shuffle=True, num_workers=workers)))
    assert len(found) == 5
    assert sorted(itertools.chain(*found)) == list(range(20))


def test_same_batches_as_without_us() -> None:
    plain = DataLoader(Squares(), batch_size=4, shuffle=True)
    torch.manual_seed(3)
    expected = [batch["row"].tolist() for batch in plain]
    torch.manual_seed(3)
    assert rows(wrapped(plain)) == expected


@pytest.mark.parametrize("make", [planned, lambda: wrapped(DataLoader(Squares(), batch_size=4, shuffle=True))])
def test_iterators_are_independent(make: Callable[[], IndexedLoader]) -> None:
    loader = make()
    pairs = list(zip(loader, loader, strict=True))
    for side in zip(*pairs, strict=True):
        assert sorted(itertools.chain(*rows(side))) == list(range(20))
    outer = []
    for batch in loader:
        outer.append(batch)
        next(iter(loader))
    assert sorted(itertools.chain(*rows(outer))) == list(range(20))


def test_persistent_workers_serve_one_iterator() -> None:
    loader = planned(num_workers=1, persistent_workers=True)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(InputError, match="persistent_workers"):
        next(first)


def place(loader: IndexedLoader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["batches"]


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_after_the_batches_that_were_yielded(workers: int) -> None:
    whole, stopped, resumed = (planned(num_workers=workers) for _ in range(3))
    assert place(whole) == (0, 0)
    for loader in (whole, stopped):
        loader.set_epoch(3)
    expected = rows(whole)
    iterator = iter(stopped)
    assert rows(itertools.islice(iterator, 2)) == expected[:2]
    assert place(stopped) == (3, 2)
    resumed.load_state_dict(stopped.state_dict())
    assert place(resumed) == (3, 2)
    resumed.set_epoch(3)
    assert rows(resumed) == expected[2:]
    assert place(resumed) == place(whole) == (3, 5)
    resumed.set_epoch(3)
    assert rows(resumed) == expected


def test_a_checkpoint_at_the_end_of_an_epoch_does_not_repeat_it() -> None:
    stopped, resumed, steps = planned(), planned(), 0
    list(stopped)
    resumed.load_state_dict(stopped.state_dict())
    for epoch in range(3):
        resumed.set_epoch(epoch)
        steps += len(list(resumed))
    assert steps == 10


def test_the_loops_own_order_is_resumed() -> None:
    def loader(**options: Any) -> IndexedLoader:
        return wrapped(DataLoader(Squares(), batch_size=4, shuffle=True, **options))

    for options in ({}, {"generator": torch.Generator()}):
        stopped, resumed = loader(**options), loader(**options)
        iterator = iter(stopped)
        seen = rows(itertools.islice(iterator, 2))
        state = stopped.state_dict()
        torch.manual_seed(99)
        resumed.load_state_dict(state)
        rest = rows(resumed)
        assert rest == rows(iterator)
        assert sorted(itertools.chain(*seen, *rest)) == list(range(20))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_epoch_of_a_resumed_loop_has_its_own_order(first: int, workers: int) -> None:
    """A loop may go on with the stored epoch, which has no batches left, or with the next one."""
    whole, resumed = (wrapped(DataLoader(Squares(), batch_size=4, shuffle=True, num_workers=workers)) for _ in range(2))
    before = rows(whole)
    state, generator = whole.state_dict(), torch.get_rng_state()
    whole.set_epoch(1)
    expected = rows(whole)
    resumed.load_state_dict(state)
    torch.set_rng_state(generator)
    for epoch in range(first, 2):
        resumed.set_epoch(epoch)
        last = rows(resumed)
    assert last == expected != before


def test_the_same_epoch_again_is_said() -> None:
    loader = planned()
    list(loader)
    with pytest.warns(UserWarning, match=r"Epoch 0 begins again, with the same batches\. Call loader\.set_epoch"):
        list(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.set_epoch(1)
        next(iter(loader))
        list(loader)
        native = wrapped(DataLoader(Squares(), batch_size=4, shuffle=True))
        list(native), list(native)  # shuffles anew


def test_the_epoch_may_be_chosen_after_the_iterator_is_made() -> None:
    loader = planned()
    iterator = iter(loader)
    loader.set_epoch(7)
    late = rows(iterator)
    loader.set_epoch(7)
    assert rows(loader) == late
    loader.set_epoch(0)
    assert rows(loader) != late


def test_the_epoch_may_be_chosen_while_an_iterator_runs() -> None:
    """The state is then of the batches that were yielded, not of the next epoch."""
    loader, resumed = planned(), planned()
    for number, _ in enumerate(loader, start=1):
        loader.set_epoch(1)
        assert place(loader) == (0, number)
    resumed.load_state_dict(loader.state_dict())
    assert list(resumed) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == 5
    assert place(loader) == (1, 5)
    loader.set_epoch(2)
    assert place(loader) == (2, 0)


def test_the_order_is_kept_in_a_state_that_is_saved_again() -> None:
    first, second, third = (wrapped(DataLoader(Squares(), batch_size=4, shuffle=True)) for _ in range(3))
    iterator = iter(first)
    seen = rows(itertools.islice(iterator, 2))
    second.load_state_dict(first.state_dict())
    third.load_state_dict(second.state_dict())
    assert sorted(itertools.chain(*seen, *rows(third))) == list(range(20))


def test_states_of_something_else_are_refused() -> None:
    other = IndexedLoader(DataLoader(Squares(), batch_size=5), InBatch(SamplingContext(20, 5)))
    seeded = IndexedLoader(DataLoader(Squares(), batch_size=4), InBatch(SamplingContext(20, 4, seed=1)))
    for state in ({}, {"batches": 2}, other.state_dict(), seeded.state_dict()):
        with pytest.raises(InputError, match=r"state is not of this loader \(InBatch of 20 samples, 5 batches, seed 0"):
            planned().load_state_dict(state)
    with pytest.raises(InputError, match="in_order=False cannot be resumed"):
        planned(in_order=False, num_workers=1).state_dict()


def test_the_loader_has_the_settings_of_the_loader_it_replaces() -> None:
    generator = torch.Generator()
    options = {"num_workers": 2, "prefetch_factor": 3, "persistent_workers": True, "timeout": 60, "generator": generator}
    native = DataLoader(Squares(), batch_size=6, worker_init_fn=print, multiprocessing_context="fork", **options)
    loader = IndexedLoader(native, InBatch(SamplingContext(20, 6)))
    assert isinstance(loader, DataLoader)
    for name in (*options, "worker_init_fn", "multiprocessing_context", "batch_size", "pin_memory", "in_order"):
        assert getattr(loader, name) is getattr(native, name) or getattr(loader, name) == getattr(native, name)
    assert loader.drop_last
    assert (len(loader), len(loader.batch_sampler), len(loader.dataset), len(loader.sampler)) == (3, 3, 20, 18)
    assert [list(batch) for batch in loader.batch_sampler] == rows(loader)
    assert list(loader.sampler) == list(itertools.chain(*rows(loader)))
    kept = wrapped(DataLoader(Squares(), batch_size=6))
    assert (kept.batch_size, kept.drop_last, len(kept), len(kept.sampler)) == (6, False, 4, 20)


def test_batches_of_a_loader_that_is_made_of_its_attributes_have_their_samples() -> None:
    loader = planned()
    again = DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn, num_workers=1)
    again.batch_sampler.set_epoch(2)
    assert loader.epoch == 2
    assert rows(again) == rows(loader)


def test_another_sampler_is_used_from_the_next_iteration_on() -> None:
    loader, other = planned(num_workers=1, persistent_workers=True), InBatch(SamplingContext(20, 4, seed=7))
    loader.set_epoch(3)
    before = rows(loader)
    loader.use(other)
    loader.set_epoch(3)
    assert rows(loader) != before
    assert sorted(itertools.chain(*rows(loader))) == list(range(20))
    assert loader.negatives is other


class Bucketed:
    """A loop's own batch sampler, which changes with its epoch."""

    epoch, batch_size = 0, 4

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[list[Any]]:
        yield from (list(torch.randperm(20, generator=torch.Generator().manual_seed(self.epoch)))[:4] for _ in range(5))


def test_the_loops_own_batch_sampler_hears_the_epoch_and_may_yield_tensors() -> None:
    loader = wrapped(DataLoader(Squares(), batch_sampler=Bucketed()))
    first = rows(loader)
    loader.set_epoch(1)
    assert first != rows(loader)


def test_streams_are_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(20))

    loader = DataLoader(Stream(), batch_size=None)
    with pytest.raises(DataError, match="map-style data set and with batch_size="):
        IndexedLoader(loader, InBatch(SamplingContext(20, 4)))


def test_batches_know_the_progress_of_the_training() -> None:
    loader = planned(num_workers=1)
    assert next(iter(loader))[1].progress is None
    loader.epochs = 2
    loader.set_epoch(1)
    shares = [float(samples.progress) for _, samples in loader]
    assert shares == pytest.approx([(5 + place) / 10 for place in range(5)])
    resumed = planned()
    resumed.epochs = 2
    resumed.load_state_dict({**loader.state_dict(), "batches": 3})
    assert [float(samples.progress) for _, samples in resumed] == pytest.approx(shares[3:])
