from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from clip_negatives.errors import DataError, InputError, UnsupportedError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.keyed_loader import KeyedLoader
from clip_negatives.loader import BatchIndex, IndexedLoader
from clip_negatives_extra_texts.swapped import SwappedWords
from clip_negatives_in_batch.sampler import InBatch


class Squares(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> dict[str, int]:
        return {"row": row, "square": row * row}


def wrapped(loader: DataLoader, **more: object) -> tuple[IndexedLoader, BatchIndex]:
    index = BatchIndex(**more)
    context = SamplingContext(20, 4, native_batches=loader.batch_sampler)
    return IndexedLoader(loader, InBatch(context), index), index


@pytest.mark.parametrize("workers", [0, 2])
def test_index_is_that_of_the_batch_under_prefetching(workers: int) -> None:
    loader, index = wrapped(DataLoader(Squares(), batch_size=4, shuffle=True, num_workers=workers))
    batches = 0
    for batch in loader:
        assert torch.equal(index(), batch["row"])
        assert torch.equal(batch["square"], index() ** 2)
        batches += 1
    assert batches == len(loader) == 5


def test_same_batches_as_without_us() -> None:
    plain = DataLoader(Squares(), batch_size=4, shuffle=True)
    torch.manual_seed(3)
    expected = [batch["row"].tolist() for batch in plain]
    torch.manual_seed(3)
    assert [batch["row"].tolist() for batch in wrapped(plain)[0]] == expected


class Damaged(Squares):
    def __getitem__(self, row: int) -> dict[str, int]:
        if row == 6:
            raise FileNotFoundError(2, "No such file", "6.png")
        return super().__getitem__(row)


@pytest.mark.parametrize("workers", [0, 2])
def test_sample_that_cannot_be_read_is_named(workers: int) -> None:
    loader, _ = wrapped(DataLoader(Damaged(), batch_size=4, num_workers=workers))
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(DataError, match=r"^Expected a sample 6 .* got: .*'6.png'. Repair it\.$"):
        next(iterator)


def test_own_collation_is_kept() -> None:
    loader, _ = wrapped(DataLoader(Squares(), batch_size=4, collate_fn=lambda samples: [one["square"] for one in samples]))
    assert next(iter(loader)) == [0, 1, 4, 9]


def test_window_of_accumulation_and_observer() -> None:
    seen: list[torch.Tensor] = []
    loader, index = wrapped(DataLoader(Squares(), batch_size=4), batches=2, observe=seen.append)
    iterator = iter(loader)
    next(iterator)
    assert index().tolist() == [0, 1, 2, 3]
    next(iterator)
    assert index().tolist() == list(range(8))
    next(iterator)
    assert index().tolist() == list(range(4, 12))
    assert len(seen) == 3


def test_index_before_any_batch() -> None:
    with pytest.raises(InputError, match="Iterate over it"):
        BatchIndex()()


@pytest.mark.parametrize("workers", [0, 2])
def test_index_in_the_batch_is_right_however_far_ahead_batches_are_fetched(workers: int) -> None:
    native = DataLoader(Squares(), batch_size=4, shuffle=True, num_workers=workers)
    sampler = InBatch(SamplingContext(20, 4, native_batches=native.batch_sampler))
    fetched = list(IndexedLoader(native, sampler, BatchIndex(), index_in_batch=True))
    assert len(fetched) == 5
    assert all(torch.equal(batch["row"], index) for batch, index in fetched)


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_after_the_batches_that_were_handed_out(workers: int) -> None:
    def loader() -> IndexedLoader:
        sampler = InBatch(SamplingContext(20, 4))
        return IndexedLoader(DataLoader(Squares(), batch_size=4, num_workers=workers), sampler, BatchIndex())

    whole, stopped, resumed = loader(), loader(), loader()
    for one in (whole, stopped, resumed):
        one.set_epoch(3)
    expected = [batch["row"].tolist() for batch in whole]
    iterator = iter(stopped)
    assert [next(iterator)["row"].tolist() for _ in range(2)] == expected[:2]
    assert stopped.state_dict() == {"batches": 2}
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.state_dict() == {"batches": 2}
    assert [batch["row"].tolist() for batch in resumed] == expected[2:]
    assert resumed.state_dict() == whole.state_dict() == {"batches": 0}
    assert [batch["row"].tolist() for batch in resumed] == expected


def test_the_epoch_may_be_chosen_after_the_iterator_is_made() -> None:
    loader, _ = wrapped(DataLoader(Squares(), batch_size=4))
    loader.use(InBatch(SamplingContext(20, 4)))
    iterator = iter(loader)
    loader.set_epoch(7)
    late = [batch["row"].tolist() for batch in iterator]
    loader.set_epoch(7)
    assert [batch["row"].tolist() for batch in loader] == late
    loader.set_epoch(0)
    assert [batch["row"].tolist() for batch in loader] != late


@pytest.mark.parametrize("state", [{}, {"batches": 5}, {"batches": -1}, {"batches": "2"}])
def test_states_of_something_else_are_refused(state: dict) -> None:
    loader, _ = wrapped(DataLoader(Squares(), batch_size=4))
    with pytest.raises(InputError, match=r"a state of 0 \.\. 4 batches"):
        loader.load_state_dict(state)


def test_texts_find_no_place_beside_the_index() -> None:
    context = SamplingContext(20, 4, captions=["one two three"] * 20)
    with pytest.raises(UnsupportedError, match=r"adds no texts for a loader that yields \(batch, index\)"):
        IndexedLoader(DataLoader(Squares(), batch_size=4), SwappedWords(context), BatchIndex(), index_in_batch=True)


class ManyAtOnce(Squares):
    def __getitems__(self, rows: list[int]) -> list[dict[str, int]]:
        return [{"row": row, "square": row * row} for row in rows]

    def __getitem__(self, row: int) -> dict[str, int]:
        raise NotImplementedError


def test_samples_that_are_read_together_are() -> None:
    loader, index = wrapped(DataLoader(ManyAtOnce(), batch_size=4))
    assert all(torch.equal(batch["row"], index()) for batch in loader)


def test_streams_are_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(20))

    loader = DataLoader(Stream(), batch_size=None)
    with pytest.raises(DataError, match="in_batch"):
        IndexedLoader(loader, InBatch(SamplingContext(20, 4)), BatchIndex())


def test_keys_of_a_stream() -> None:
    index = BatchIndex()
    loader = KeyedLoader([("image", "text", ["b", "a"]), ("image", "text", ["c", "x"])], {"a": 0, "b": 1, "c": 2}, index)
    iterator = iter(loader)
    assert next(iterator) == ("image", "text")
    assert index().tolist() == [1, 0]
    with pytest.raises(DataError, match="'x'"):
        next(iterator)
