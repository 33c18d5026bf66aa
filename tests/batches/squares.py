"""A data set of twenty samples, and a loader of it with batches of a sampler."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset

from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.batches.native_order import NativeOrder
from clip_negatives.interfaces import SamplingContext
from clip_negatives.step import BatchSamples
from clip_negatives_plugins.in_batch.sampler import InBatch


class Squares(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> dict[str, int]:
        return {"row": row, "square": row * row}


def planned(**options: object) -> IndexedLoader:
    return IndexedLoader(DataLoader(Squares(), batch_size=4, **options), InBatch(SamplingContext(20, 4)))


def wrapped(loader: DataLoader) -> IndexedLoader:
    order = NativeOrder(loader.batch_sampler)
    return IndexedLoader(loader, InBatch(SamplingContext(20, 4, native_batches=order)), order=order)


def rows(batches: Iterable[tuple[dict[str, torch.Tensor], BatchSamples]]) -> list[list[int]]:
    """Return the rows of the batches, which the samples must name."""
    batches = list(batches)
    assert all(torch.equal(batch["row"], samples.ids) for batch, samples in batches)
    return [samples.ids.tolist() for _, samples in batches]
