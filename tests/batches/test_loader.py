"""The loader with the batches of a sampler: which samples, in which order, and how it resumes."""

from __future__ import annotations

import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from clip_negatives.batches.checked import checked_batches
from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.batches.native_order import NativeOrder
from clip_negatives.batches.streams import StreamLoader, TextStage
from clip_negatives.errors import ArtifactError, DataError, InputError, PluginError
from clip_negatives.interfaces import SamplingContext
from clip_negatives.step import BatchSamples
from clip_negatives.storage.digests import text_digest
from clip_negatives.storage.shards import ClusteredShards, ShardRows
from clip_negatives_plugins.in_batch.sampler import InBatch


class Squares(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> dict[str, int]:
        return {"row": row, "square": row * row}


def wrapped(loader: DataLoader) -> IndexedLoader:
    order = NativeOrder(loader.batch_sampler)
    return IndexedLoader(loader, InBatch(SamplingContext(20, 4, native_batches=order)), order=order)


def planned(**options: object) -> IndexedLoader:
    return IndexedLoader(DataLoader(Squares(), batch_size=4, **options), InBatch(SamplingContext(20, 4)))


def rows(batches: Iterable[tuple[dict[str, torch.Tensor], BatchSamples]]) -> list[list[int]]:
    """Return the rows of the batches, which the samples must name."""
    batches = list(batches)
    assert all(torch.equal(batch["row"], samples.ids) for batch, samples in batches)
    return [samples.ids.tolist() for _, samples in batches]


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


class Damaged(Squares):
    def __getitem__(self, row: int) -> dict[str, int]:
        if row == 6:
            raise FileNotFoundError(2, "No such file", "6.png")
        return super().__getitem__(row)


@pytest.mark.parametrize("workers", [0, 2])
def test_sample_that_cannot_be_read_is_named(workers: int) -> None:
    iterator = iter(wrapped(DataLoader(Damaged(), batch_size=4, num_workers=workers)))
    next(iterator)
    with pytest.raises(DataError, match=r"^Sample 6 .* cannot be read: .*'6.png'. Repair or remove it\.$"):
        next(iterator)


def test_own_collation_is_kept() -> None:
    loader = wrapped(DataLoader(Squares(), batch_size=4, collate_fn=lambda samples: [one["square"] for one in samples]))
    assert next(iter(loader))[0] == [0, 1, 4, 9]


def by_square(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return default_collate(sorted(samples, key=lambda sample: -sample["square"]))


def by_kind(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Sort by a value that most samples share, and add noise."""
    ordered = sorted(samples, key=lambda sample: sample["row"] % 7 == 6)
    return default_collate(ordered) | {"noise": torch.rand(len(samples))}


def shuffled(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    random.shuffle(samples)
    return default_collate(samples)


def replacing(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    good = [sample for sample in samples if sample["row"] != 13]
    return default_collate(good + good[: len(samples) - len(good)])


def encoded(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Compute new values from sorted samples, as processors do."""
    return {"pixels": torch.tensor([[sample["square"] / 100 - 1.0] * 3 for sample in sorted(samples, key=str)])}


def in_numpy(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"row": np.array([sample["row"] for sample in samples[::-1]])}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [by_square, by_kind, shuffled, replacing, encoded, in_numpy])
def test_collation_that_changes_the_order_is_an_error(workers: int, collate: Callable[..., Any]) -> None:
    random.seed(5)
    with pytest.raises(DataError, match="collate function changes the order"):
        list(planned(num_workers=workers, collate_fn=collate))


def labelled(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Add tensors that have a row for each sample, but are not of the samples."""
    fixed = {"label": torch.arange(len(samples)), "target": torch.eye(len(samples))}
    return default_collate(samples) | fixed | {"partner": torch.tensor([sample["row"] for sample in samples]).roll(1, 0)}


def popping(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Change the samples, and compute new values, with random noise."""
    values = [sample.pop("square") + random.random() for sample in samples]
    return {
        "pixels": torch.tensor(values),
        "nested": torch.nested.nested_tensor([torch.ones(n + 1) for n in range(len(samples))]),
    }


def normalized(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixels": torch.tensor([[sample["square"] / 100 - 1.0] * 3 for sample in samples]),
        "label": torch.arange(len(samples)),
    }


@pytest.mark.parametrize(("collate", "is_checked"), [(labelled, True), (normalized, True), (popping, False)])
def test_collation_that_keeps_the_order_is_let_through(
    collate: Callable[..., Any], is_checked: bool, recwarn: pytest.WarningsRecorder
) -> None:
    assert len(list(planned(collate_fn=collate))) == 5
    told = [str(warning.message) for warning in recwarn.list if "Could not check that collate_fn keeps" in str(warning.message)]
    assert len(told) == (0 if is_checked else 1)


def noisy(samples: list[dict[str, int]]) -> dict[str, Any]:
    noise = {"noise": torch.rand(len(samples)), "more": np.random.rand(), "most": random.random()}  # noqa: NPY002
    return {"value": torch.tensor([sample["square"] + 0.5 for sample in samples])} | noise


def test_collation_draws_the_same_random_numbers_as_without_us() -> None:
    loader = DataLoader(Squares(), batch_size=4, collate_fn=noisy)

    def seed() -> None:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)

    seed()
    expected = list(loader)
    seed()
    for (batch, _), other in zip(wrapped(loader), expected, strict=True):
        assert torch.equal(batch["noise"], other["noise"])
        assert (batch["more"], batch["most"]) == (other["more"], other["most"])


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


class ManyAtOnce(Squares):
    def __getitems__(self, rows: list[int]) -> list[dict[str, int]]:
        return [{"row": row, "square": row * row} for row in rows]

    def __getitem__(self, row: int) -> dict[str, int]:
        raise NotImplementedError


class OneLost(ManyAtOnce):
    def __getitems__(self, rows: list[int]) -> list[dict[str, int]]:
        raise FileNotFoundError(2, "No such file", "6.png")

    def __getitem__(self, row: int) -> dict[str, int]:
        return Damaged()[row]


def test_a_sample_lost_among_those_read_together_is_named() -> None:
    with pytest.raises(DataError, match=r"^Sample 6 .* cannot be read"):
        list(planned_of(OneLost()))


def planned_of(data: Dataset) -> IndexedLoader:
    return IndexedLoader(DataLoader(data, batch_size=4), InBatch(SamplingContext(20, 4)))


def test_samples_that_are_read_together_are() -> None:
    assert len(rows(wrapped(DataLoader(ManyAtOnce(), batch_size=4)))) == 5


def test_streams_are_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(20))

    loader = DataLoader(Stream(), batch_size=None)
    with pytest.raises(DataError, match="map-style data set and with batch_size="):
        IndexedLoader(loader, InBatch(SamplingContext(20, 4)))


def test_shards_and_keys_of_a_stream() -> None:
    """Keys repeat over shards: a sample is known by its shard, at any address, and its key."""
    shards = ClusteredShards(Path("clusters"), 1, {}, {"s/0.tar": "0.tar", "s/1.tar": "1.tar"})
    texts = ["first", "second", "third"]
    rows = ShardRows(shards, {"0.tar": {"a": 0, "b": 1}, "1.tar": {"a": 2}}, pa.chunked_array([texts]))
    batches = [
        ("0.tar 1.tar 0.tar", "b a a", "second third first"),
        ("0.tar", "x", "first"),
        ("other.tar", "a", "first"),
        ("1.tar", "a", "first"),
    ]
    loader = [
        (
            "image",
            "text",
            [f"/copy/{name}" for name in names.split()],
            keys.split(),
            [text_digest(text.encode()) for text in said.split()],
        )
        for names, keys, said in batches
    ]
    batch, samples = next(iter(StreamLoader(loader, rows)))
    assert batch == ("image", "text")
    assert samples.ids.tolist() == [1, 2, 0]
    with pytest.raises(DataError, match=r"'x' of /copy/0\.tar was not clustered"):
        list(StreamLoader(loader[1:], rows))
    with pytest.raises(ArtifactError, match=r"^The shard /copy/other\.tar was not clustered"):
        list(StreamLoader(loader[2:], rows))
    with pytest.raises(ArtifactError, match=r"^The text of the sample 'a' of /copy/1\.tar is not the one that was clustered"):
        list(StreamLoader(loader[3:], rows))


def test_samples_that_were_not_clustered_are_left_out_of_a_stream() -> None:
    """Of equal keys in one shard the first is used, each time that the shard is read; other shards have keys of their own."""
    shards = ClusteredShards(Path("clusters"), 1, {}, {"s/0.tar": "0.tar", "s/1.tar": "1.tar"})
    rows = ShardRows(shards, {"0.tar": {"a": 0}, "1.tar": {"a": 1, "b": 2}}, pa.chunked_array([["first", "second", "third"]]))
    broken = pa.table({"key": ["a", "b", "a"], "reason": ["why"] * 3, "shard": ["s/0.tar", "s/0.tar", "s/0.tar"]})
    stage = TextStage(shards, rows.left_out(broken))
    read = [("0.tar", "a", 0), ("0.tar", "a", 1), ("0.tar", "b", 2), ("0.tar", "a", 3), ("1.tar", "a", 4), ("1.tar", "b", 5)]
    samples = [{"__url__": f"/copy/{tar}", "__key__": key, "number": number} for tar, key, number in read]
    assert [sample["number"] for sample in stage([*samples, *samples])] == [0, 4, 5, 0, 4, 5]


class Faulty(InBatch):
    """A sampler of a plugin that yields what it is given."""

    def __init__(self, batches: Iterable[Any], exits: bool = False) -> None:
        super().__init__(SamplingContext(20, 4))
        self.batches, self.exits = batches, exits

    keeps_native_order = False

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches
        if self.exits:
            sys.exit(0)


GOOD = [list(range(start, start + 4)) for start in range(0, 20, 4)]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Faulty([[0, 1, 2, 20]]), r"The sampler Faulty yields \[0, 1, 2, 20\] as batch 0, not ids within 0 \.\. 19\. Repair"),
        (Faulty([*GOOD[:2], [-1, 1, 2, 3]]), r"\[-1, 1, 2, 3\] as batch 2"),
        (Faulty([[0, 1.0, 2, 3]]), r"\[0, 1\.0, 2, 3\] as batch 0"),
        (Faulty([["a", 1]]), "'a', 1"),
        (Faulty([[]]), r"yields \[\] as batch 0"),
        (Faulty([7]), "yields 7 as batch 0"),
        (Faulty([None]), "yields None as batch 0"),
        (Faulty([[3, 3, 4, 5]]), "has a sample twice in batch 0"),
        (Faulty(GOOD[:3]), "yields only 3 batches, and its length is 5"),
        (Faulty(itertools.cycle(GOOD)), "yields more batches, and its length is 5"),
        (Faulty(GOOD[:2], exits=True), r"test_loader\.py, line \d+, ended the program with exit code 0"),
    ],
)
def test_wrong_batches_of_a_plugin_name_it(sampler: InBatch, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        list(IndexedLoader(DataLoader(Squares(), batch_size=4), sampler))


def test_integers_of_other_types_are_ids() -> None:
    for kind in (np.array, torch.tensor, tuple, lambda batch: list(np.array(batch, dtype=np.uint64)), iter):
        assert list(checked_batches(Faulty([kind(batch) for batch in GOOD]), 20)) == GOOD
