"""A stream whose samples are known by key: it yields what it yielded before, and the loss learns the index of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import DataError
from clip_negatives.loader import BatchIndex


class KeyedLoader:
    """Iterate over a stream of ``(*batch, keys)`` and turn the keys into sample indices for the loss.

    Args:
        loader: yields tuples whose last entry lists the keys of the samples.
        rows: index of each key, or None where nothing looks samples up (then -1 stands for each).
        batch_index: where the loss reads the index.
    """

    def __init__(self, loader: Iterable[Any], rows: Mapping[str, int] | None, batch_index: BatchIndex) -> None:
        self._loader = loader
        self._rows = rows
        self.batch_index = batch_index

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches without their keys.

        Raises:
            DataError: a sample has a key that the clusters do not know.
        """
        for *batch, keys in self._loader:
            self.batch_index.push(self._index(keys))
            yield tuple(batch)

    def _index(self, keys: list[str]) -> Tensor:
        if self._rows is None:
            return torch.full((len(keys),), -1)
        unknown = next((key for key in keys if key not in self._rows), None)
        if unknown is not None:
            raise DataError(
                f"Expected only samples that were clustered, got the key {unknown!r}, which the clusters folder does not "
                "hold. Prepare it from the shards that are trained on."
            )
        return torch.tensor([self._rows[key] for key in keys])
