"""Encode a data set part by part, in independent tasks; each part becomes a folder on a disk or in an object store."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
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
from clip_negatives.dataset import ImageTextPairs, Part, TablePairs
from clip_negatives.dataset.missing import MissingLimit
from clip_negatives.dataset.urls import is_plain
from clip_negatives.distributed.task import Task
from clip_negatives.encoders import Encoder, image_encoder, text_encoder
from clip_negatives.errors import DataError, InputError, MissingShardError, UnsupportedError
from clip_negatives.features.encoding import CHUNK, encode_images, encode_texts
from clip_negatives.features.losses import Losses, PartReport, check_share
from clip_negatives.features.run import DTYPES, REPEATED
from clip_negatives.features.store import PartStore
from clip_negatives.pipelines.parts_by_task import TaskReport, work_through
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.progress import shown
from clip_negatives.storage.limits import MAX_LOST, OF_SAMPLES, limit
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.ownership import claim_work
from clip_negatives.storage.task_folder import Record, TaskFolder

KIND, COMMAND = "parts", "clip-negatives encode"
NO_SAMPLES = pa.schema([(name, pa.string()) for name in ("key", "text", "shard")]).empty_table()
NOTHING: Record = {"count": 0, "broken": [], "lost": [], "torn": None, "notes": {}, "sources": []}


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

    The tasks may run at any time, on any machines that reach `data` and `parts`. They need no process group. A part is a
    tar, or a block of rows of a table that names the tars of its samples. A part that changed since, and a torn or missing
    tar, is read again by the task that it belongs to.

    Args:
        data: the pairs, see `Recipe.open`.
        parts: folder to fill, a path or a URL of fsspec.
        recipe: encoders, dtype of the features and columns. The clusterers and the seed are not used.
        task: this task.
        max_lost: largest share of samples, 0 .. 1, that may be lost in the parts that this task handled.
        max_missing_shards: largest number or percentage of all tars that may be missing in the parts that this task handled.
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
    if recipe.feature_dtype not in DTYPES:
        raise InputError(f"Expected feature_dtype {' or '.join(DTYPES)}, got {recipe.feature_dtype!r}.")
    source = recipe.open(data, may_lack_tars=True)
    listed, folder = source.parts(), parts_folder(parts)
    _check_tars(source)
    names = _names(listed)
    encoders = image_encoder(recipe.image_encoder), text_encoder(recipe.text_encoder)
    _check_independent(*encoders)
    folder = folder.begun(_settings(recipe, *encoders), names)
    encoding = PartEncoding(folder, listed, *encoders, DTYPES[recipe.feature_dtype])
    with shown(progress):
        report = work_through(folder, task, "Encoding parts", is_done=encoding.is_done, work=encoding.encode)
    handled = {*task.own(names), *report.done}
    known = [name for name in names if name in handled]
    records = [record for name in known if (record := folder.record(name)) is not None]
    if records:
        _add_losses(report, records, missing, max_lost)
    return report


def _add_losses(report: TaskReport, records: Sequence[Record], missing: MissingLimit, max_lost: float) -> None:
    """Add torn and missing tars and broken samples to a report: as faults above the limits, else as warnings."""
    losses = Losses.of([PartReport.of(record) for record in records])
    faults = [fault for _, fault in losses.missing]
    try:
        missing.check(faults, report.n_parts)
    except MissingShardError as error:
        report.faults += [str(error), *faults[1:]]
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
        """Return whether a record is of the part as it is now. Torn and missing tars are read again."""
        if record["torn"] or record["missing"]:
            return False
        with suppress(MissingShardError):  # the part stays, also if its tar was removed since
            return bool(record["digest"] == self.parts[number].digest())
        return True

    def encode(self, number: int) -> None:
        """Encode and publish a part; a missing tar becomes a part without samples. DataError if the part cannot be used."""
        part, digest, missing = self.parts[number], "", None
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
                digest, missing = "", (part.name, str(error))
            record = {**NOTHING, **(images.record(digest) or {}), "missing": missing, "digest": digest}
            table = images.folder / digest / SAMPLES
            pq.write_table(pq.read_table(table) if table.exists() else NO_SAMPLES, files / SAMPLES, compression="zstd")
            for name, store in (("image", images), ("text", texts)):
                np.save(files / f"{name}.npy", store.vectors(digest, 0, None).numpy())
            self.folder.publish(self.folder.names[number], files, record)


def _names(parts: Sequence[Part]) -> list[str]:
    """Return the names of the folders of the parts: number, and digest of the absolute name; DataError if a part repeats."""
    counts = Counter(part.name for part in parts)
    if repeated := next((name for name, count in counts.items() if count > 1), None):
        raise DataError(f"{repeated} is named twice. {REPEATED['tars'].rpartition('. ')[2]}")
    absolute = (str(Path(part.name).absolute()) if is_plain(part.name) else part.name for part in parts)
    digests = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest() for name in absolute)
    return [f"{number:06d}-{digest[:16]}" for number, digest in enumerate(digests)]


def _settings(recipe: Recipe, images: Encoder, texts: Encoder) -> dict[str, Any]:
    """Return what determines the features of a part."""
    return {
        "images": {"encoder": images.name},
        "texts": {"encoder": texts.name},
        "features": {"dtype": recipe.feature_dtype, "chunk": CHUNK},
        "columns": dataclasses.asdict(recipe.columns),
        "limits": {name: limit(name) for name in OF_SAMPLES},
        "versions": {"clip-negatives": __version__, "torch": torch.__version__, "scikit-learn": version("scikit-learn")},
    }


def _check_tars(source: ImageTextPairs) -> None:
    """Raise DataError for a table that does not name the tars of its samples."""
    if isinstance(source, TablePairs) and "shard" not in source.block(0, 1):
        repair = f"Name them with {argument('shard')} or {argument('shard_pattern')}, or use clip-negatives prepare"
        raise DataError(f"{source.path} does not name the tars of its samples, which labels need. {repair}.")


def _check_independent(images: Encoder, texts: Encoder) -> None:
    """Raise UnsupportedError if an encoder learns from more than one part."""
    for name, encoder, example in (("image_encoder", images, "pixels:dim=0"), ("text_encoder", texts, "hashing")):
        if encoder.learn is not None or encoder.fit is not None:
            fault = f"The encoder {encoder.name} learns from all data together, but tasks encode parts independently"
            raise UnsupportedError(f"{fault}. Name a trained model or {example} with {argument(name)}.")


def _ignore(count: int) -> None:
    """Show no progress within a part."""
