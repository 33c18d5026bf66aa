"""A stream whose samples are known by key: it yields what it yielded before, and the loss learns what each batch is of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.labels import ShardLabels
from clip_negatives.loader import BatchIndex

SURE = 20_000
"""Samples without labels, of some shards, after which a stream without any is taken for one of other shards."""


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


class LabelStage:
    """A stage of a webdataset pipeline, right after the tars are read: it gives each sample ``__labels__``.

    They are a tensor of two numbers, image and text cluster, -1 where the sample's key is not among the labels of its shard.
    A shard's labels are read when its first sample comes, and forgotten when the next shard's are.

    Args:
        shards: where the labels are.
    """

    def __init__(self, shards: ShardLabels) -> None:
        self._shards = shards

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples with their labels.

        Raises:
            ArtifactError: the labels of a shard are damaged.
        """
        for sample in samples:
            found = self._shards.of(sample["__url__"]).get(sample["__key__"], (-1, -1))
            yield {**sample, "__labels__": torch.tensor(found)}


class LabelledLoader:
    """Iterate over a stream of ``(*batch, labels)`` and hand the labels of each batch to the loss.

    A sample without labels is trained on like any other, and its incorrect pairs count as they are.

    Args:
        loader: yields tuples whose last entry is int64, shape (B, 2), from `LabelStage`.
        batch_index: where the loss reads the labels.

    Attributes:
        unlabelled: samples without labels that were handed out so far.
    """

    def __init__(self, loader: Iterable[Any], batch_index: BatchIndex) -> None:
        self._loader = loader
        self.batch_index = batch_index
        self.unlabelled = 0
        self._labelled = False

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches without their labels.

        Raises:
            DataError: there are no labels for any of the first `SURE` samples, or of the first epoch.
            ArtifactError: the labels of a shard are damaged.
        """
        try:
            for *batch, labels in self._loader:
                self._count(labels)
                self.batch_index.push(labels)
                yield tuple(batch)
            self._refuse_others(least=1)
        except ArtifactError as error:
            # One that was raised in a worker comes with the traceback from there; what it says is the last line.
            raise ArtifactError(str(error).strip().splitlines()[-1].removeprefix(f"{_full_name(ArtifactError)}: ")) from error

    def _count(self, labels: Tensor) -> None:
        missing = int((labels[:, 0] < 0).sum())
        self.unlabelled += missing
        self._labelled = self._labelled or missing < len(labels)
        self._refuse_others(least=SURE)

    def _refuse_others(self, least: int) -> None:
        if not self._labelled and self.unlabelled >= least:
            raise DataError(
                f"Expected shards that were clustered, got {self.unlabelled} samples of which none has labels. "
                "Write the labels of the shards that are trained on: clip-negatives labels."
            )


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
