"""Webdataset streams. Their samples have no ids: the loss gets ids looked up by shard and key, or cluster labels.

A digest of the text of each sample is compared with that of the clustered sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_negatives.dataset.captions import contents, remedy, why_no_caption, with_caption
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.step import BatchSamples
from clip_negatives.storage.digests import text_digest
from clip_negatives.storage.labels_folder import ShardLabels
from clip_negatives.storage.shards import ClusteredShards, LeftOut, ShardRows

# Stop after this many samples without labels or captions: the labels belong to other shards, or another field has the captions.
UNLABELLED_LIMIT = 20_000


@dataclass
class CaptionStage:
    """Stage of a webdataset pipeline that sets ``txt`` to the caption, placed right after the tars are read.

    `field` is the ending or the json field of the caption, see `clip_negatives.dataset.captions.with_caption`. Errors name
    `option`, which sets the field.
    """

    field: str | None
    option: str = ""
    n_read: int = 0
    any_caption: bool = False

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples; open_clip skips those without ``txt``. DataError if `UNLABELLED_LIMIT` samples have no caption."""
        for sample in samples:
            captioned = with_caption(sample, self.field)
            self.any_caption |= "txt" in captioned
            self.n_read += 1
            if not self.any_caption and self.n_read >= UNLABELLED_LIMIT:  # webdataset would read the tars for ever
                reason = f"{why_no_caption(sample, self.field)}, only {contents(sample)}"
                raise DataError(
                    f"None of the first {self.n_read} samples has a caption: {reason}. {remedy(reason, self.option)}"
                )
            yield captioned


@dataclass(frozen=True)
class LabelStage:
    """Stage of a webdataset pipeline that adds ``__labels__`` to each sample, placed right after the tars are read.

    ``__labels__`` is a tensor of image label and text label, -1 if unknown. Memory holds the labels of one shard at a time.
    """

    shards: ShardLabels

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples with their labels; ArtifactError if a text differs from the clustered text."""
        for sample in samples:
            shard, key = sample["__url__"], sample["__key__"]
            image, text, digest = self.shards.of(shard).get(key, (-1, -1, ""))
            if digest and digest != text_digest(sample.get("txt", b"")):
                raise other_text(shard, key, self.shards.folder)
            yield {**sample, "__labels__": torch.tensor((image, text))}


@dataclass(frozen=True)
class TextStage:
    """Stage of a webdataset pipeline that adds ``__text__``, a digest of the text, placed right after the tars are read.

    It skips samples that were not clustered: those of missing tars, and those of `ShardRows.left_out`.
    """

    shards: ClusteredShards
    left_out: Mapping[tuple[str, str], LeftOut]

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the samples with the digests of their texts; ArtifactError if two samples in a row have no text."""
        read, shard_without_text = Counter[tuple[str, str]](), ""
        for sample in samples:
            shard, key = sample["__url__"], sample["__key__"]
            identity = self.shards.ending(shard), key
            if identity[0] in self.shards.missing:
                continue
            if (left_out := self.left_out.get(identity)) is not None:
                # Modulo, because a shard may be read several times.
                occurrence = read[identity] % (left_out.n_skipped + left_out.first_is_clustered)
                read[identity] += 1
                if occurrence > 0 or not left_out.first_is_clustered:
                    continue
            if "txt" not in sample and shard_without_text == shard:  # one such sample may be the last of a torn tar
                raise other_text(shard, key, self.shards.folder)
            shard_without_text = "" if "txt" in sample else shard
            yield {**sample, "__text__": text_digest(sample.get("txt", b""))}


class StreamLoader:
    """A stream that yields ``(batch, samples)``, with the labels or ids of the samples.

    The last entries of a batch of `loader` identify its samples:

    * labels of `LabelStage`, int64, shape (B, 2), or
    * with `rows`, which has the ids: shards, keys and digests of texts, or
    * keys: the samples get the id -1.

    `is_alone` says that no other process reads shards. Otherwise all labels may belong to the shards of another process.
    """

    def __init__(self, loader: Iterable[Any], rows: ShardRows | None = None, *, is_alone: bool = True) -> None:
        self._loader, self._rows, self.is_alone = loader, rows, is_alone
        self.unlabelled, self.any_labelled = 0, False  # number of unlabelled samples, whose pairs keep weight 1

    def __iter__(self) -> Iterator[tuple[Any, BatchSamples]]:
        """Yield each batch with its samples."""
        with worker_errors():
            for *batch, last in self._loader:
                if isinstance(last, Tensor):
                    yield tuple(batch), self._labelled(last)
                elif self._rows is None:
                    yield tuple(batch), BatchSamples(ids=torch.full((len(last),), -1))
                else:
                    *batch, shards, keys = batch
                    yield tuple(batch), self._keyed(self._rows, shards, keys, last)

    def _keyed(self, rows: ShardRows, shards: list[str], keys: list[str], texts: list[str]) -> BatchSamples:
        """Return the ids of samples; `texts` are digests."""
        ids: list[int] = []
        for shard, key, text in zip(shards, keys, texts, strict=True):
            row = rows.row(shard, key)
            if row is None:
                repair = "Run clip-negatives prepare on the shards that you train on."
                raise DataError(f"The sample {key!r} of {shard} was not clustered. {repair}")
            if text_digest(rows.text(row).encode()) != text:
                raise other_text(shard, key, rows.shards.folder)
            ids.append(row)
        return BatchSamples(ids=torch.tensor(ids))

    def _labelled(self, labels: Tensor) -> BatchSamples:
        """Return samples with these labels, and count the unlabelled ones."""
        n_unlabelled = int((labels[:, 0] < 0).sum())
        self.unlabelled += n_unlabelled
        self.any_labelled |= n_unlabelled < len(labels)
        if self.is_alone and self.unlabelled >= UNLABELLED_LIMIT:
            self.check_labelled(self.any_labelled)
        return BatchSamples(labels=labels)

    def check_labelled(self, any_labelled: bool) -> None:
        """Raise DataError if there were samples and none has labels."""
        if self.unlabelled and not any_labelled:
            raise DataError(
                f"None of the first {self.unlabelled} samples has labels: the labels belong to other shards. "
                "Run clip-negatives labels on clusters of the training shards."
            )


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn an error from a loader process into the original one: its message begins with a traceback."""
    try:
        yield
    except (ArtifactError, DataError) as error:
        kind = type(error)
        message = str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
        if message == str(error):
            raise
        raise kind(message) from error


def other_text(shard: str, key: str, folder: Path) -> ArtifactError:
    """Return the error for a sample whose text differs from the clustered text."""
    fault = f"The text of the sample {key!r} of {shard} is not the one that was clustered in {folder}."
    return ArtifactError(f"{fault} Train on the shards that were clustered, or run clip-negatives prepare again.")
