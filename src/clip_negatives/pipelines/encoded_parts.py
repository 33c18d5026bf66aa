"""Encode a data set part by part, in independent tasks; each part becomes a folder on a disk or in an object store."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_negatives import __version__
from clip_negatives.advice import argument
from clip_negatives.dataset import ImageTextPairs, Part
from clip_negatives.dataset.missing import MissingLimit
from clip_negatives.distributed.task import Task
from clip_negatives.encoders import Encoder, image_encoder, text_encoder
from clip_negatives.errors import DataError, MissingShardError, UnsupportedError
from clip_negatives.features.encoding import CHUNK, encode_images, encode_texts
from clip_negatives.features.losses import Losses, PartReport, check_share
from clip_negatives.features.run import DTYPES, REPEATED
from clip_negatives.features.store import PartStore
from clip_negatives.pipelines.parts_by_task import TaskReport, work_through
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.progress import current, shown
from clip_negatives.storage.limits import MAX_LOST, OF_SAMPLES, limit
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.ownership import claim_work
from clip_negatives.storage.task_folder import Record, TaskFolder

KIND, COMMAND = "parts", "clip-negatives encode"
NO_SAMPLES = pa.schema([(name, pa.string()) for name in ("key", "text", "shard")])


def parts_folder(url: str | Path) -> TaskFolder:
    """Return the folder of encoded parts at a path or URL."""
    return TaskFolder.at(url, KIND, COMMAND)


def encode_parts(
    data: ImageTextPairs | str | Path,
    parts: str | Path,
    recipe: Recipe,
    *,
    task: Task = Task(),  # noqa: B008  (immutable)
    max_lost: float = MAX_LOST,
    max_missing_shards: int | str = 0,
    progress: bool = True,
) -> TaskReport:
    """Encode the parts of a data set that are not complete yet, as one of several independent tasks.

    The tasks may run at any time and on any machines that reach `data` and `parts`; they need no process group. A part is a tar,
    or a block of rows of a table that names the tars of its samples. A part that changed since, and a torn or missing tar, is
    read again by the task that it belongs to.

    Args:
        data: the pairs, see `Recipe.open`.
        parts: folder to fill, a path or a URL of fsspec.
        recipe: encoders, dtype of the features and columns. The clusterers and the seed are not used.
        task: this task.
        max_lost: largest share of samples, 0 .. 1, that may be lost in the parts of this task.
        max_missing_shards: largest number or percentage of all tars that may be missing in the parts of this task.
        progress: show progress on stderr.

    Returns:
        What was done. `TaskReport.faults` has the parts that could not be encoded, and losses over the limits.

    Raises:
        UnsupportedError: an encoder learns from the data as a whole.
        DataError: the data or the weights of an encoder cannot be read.
        ArtifactError: the folder was begun with other settings, or cannot be written.
    """
    missing = MissingLimit(max_missing_shards)
    check_share(max_lost)
    source = recipe.open(data, may_lack_tars=True)
    listed, folder = source.parts(), parts_folder(parts)
    names = _names(listed)
    encoders = image_encoder(recipe.image_encoder), text_encoder(recipe.text_encoder)
    _check_independent(*encoders)
    encoding = PartEncoding(folder.begun(_settings(recipe, encoders), names), listed, *encoders, DTYPES[recipe.feature_dtype])
    with shown(progress):
        report = work_through(encoding.folder, task, "Encoding parts", is_done=encoding.is_done, work=encoding.encode)
    own = [record for name in task.own(names) if (record := encoding.folder.record(name)) is not None]
    add_losses(report, own, missing, max_lost)
    return report


def add_losses(report: TaskReport, records: Sequence[Record], missing: MissingLimit, max_lost: float) -> None:
    """Add torn and missing tars and broken samples to a report: as faults above the limits, else as warnings."""
    reports = [PartReport.of(record) for record in records]
    losses = Losses.of(reports) if reports else None
    if losses is None:
        return
    faults = [fault for _, fault in losses.missing]
    try:
        missing.check(faults, report.n_parts)
    except MissingShardError as error:
        report.faults += [*faults, str(error)] if len(faults) > 1 else [str(error)]
    else:
        report.warnings += [f"{fault} It is left out." for fault in faults]
    try:
        losses.check(max_lost)
    except DataError as error:
        report.faults.append(str(error))
    else:
        report.warnings += [f"{part.name}: {part}." for part in losses.torn]


@dataclass(frozen=True, slots=True)
class PartEncoding:
    """Encoders, and the parts to encode with them."""

    folder: TaskFolder
    parts: Sequence[Part]
    images: Encoder
    texts: Encoder
    dtype: torch.dtype

    def is_done(self, number: int, record: Record) -> bool:
        """Return whether a record is of the part as it is now; torn and missing tars are read again."""
        return not (record["torn"] or record["missing"]) and record["digest"] == self.parts[number].digest()

    def encode(self, number: int) -> None:
        """Encode and publish a part; a missing tar becomes a part without samples. DataError if the part cannot be used."""
        part = self.parts[number]
        with tempfile.TemporaryDirectory(prefix="clip-negatives-") as scratch:
            work, files = Path(scratch) / "work", Path(scratch) / "files"
            files.mkdir()
            claim_work(work)
            images, texts = PartStore(work / "images", work), PartStore(work / "texts", work)
            try:
                digest = part.digest()
                encode_images(part, digest, self.images, images, self.dtype, _ignore)
                encode_texts(digest, self.texts, images, texts, self.dtype, _ignore)
            except MissingShardError as error:
                _write_empty(files)
                record: Record = {"count": 0, "broken": [], "lost": [], "torn": None, "notes": {}, "sources": [], "digest": ""}
                self.folder.publish(self.folder.names[number], files, {**record, "missing": (part.name, str(error))})
                return
            record = images.record(digest) or {}
            self._write(files, part, digest, images, texts)
        
    def _write(self) -> None:
        ...


def _ignore(count: int) -> None:
    """Count nothing."""
