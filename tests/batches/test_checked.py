"""Wrong batches of a plugin name it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clip_negatives.batches.checked import checked_batches
from clip_negatives.batches.loader import IndexedLoader
from clip_negatives.errors import PluginError
from clip_negatives.interfaces import SamplingContext
from clip_negatives_plugins.in_batch.sampler import InBatch
from tests.batches.squares import Squares


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
        (Faulty(GOOD[:2], exits=True), r"test_checked\.py, line \d+, ended the program with exit code 0"),
    ],
)
def test_wrong_batches_of_a_plugin_name_it(sampler: InBatch, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        list(IndexedLoader(DataLoader(Squares(), batch_size=4), sampler))


def test_integers_of_other_types_are_ids() -> None:
    for kind in (np.array, torch.tensor, tuple, lambda batch: list(np.array(batch, dtype=np.uint64)), iter):
        assert list(checked_batches(Faulty([kind(batch) for batch in GOOD]), 20)) == GOOD
