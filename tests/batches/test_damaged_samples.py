"""A sample that cannot be read is named, also among samples that are read together."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.errors import DataError
from clip_negatives.interfaces import SamplingContext
from clip_negatives_plugins.in_batch.sampler import InBatch
from tests.batches.squares import Squares, rows, wrapped


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
