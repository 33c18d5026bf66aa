"""Assign the samples of encoded parts to the nearest centroids, part by part, in independent tasks."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clip_negatives.dataset.assignment_files import ENDINGS
from clip_negatives.dataset.urls import content_digest, is_plain
from clip_negatives.distributed.task import Task
from clip_negatives.encoders.encoder import device
from clip_negatives.errors import ArtifactError, DataError
from clip_negatives.pipelines.encoded_parts import COMMAND as ENCODE
from clip_negatives.pipelines.encoded_parts import parts_folder
from clip_negatives.pipelines.parts_by_task import TaskReport, work_through
from clip_negatives.pipelines.sampled_centroids import read_centroids
from clip_negatives.progress import shown
from clip_negatives.storage.consistency import MODALITIES
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.source_files import SourceFile
from clip_negatives.storage.task_folder import PLAN, Record, TaskFolder

FILE = "assignments.parquet"
COSINES_AT_ONCE = 2**26  # of rows and centroids, 256 MB


def assign_parts(
    parts: str | Path,
    centroids: str | Path,
    assignments: str | Path,
    *,
    task: Task = Task(),  # noqa: B008  (immutable)
    progress: bool = True,
) -> TaskReport:
    """Write the nearest centroid of each sample of the parts that are not assigned yet, as one of several independent tasks.

    Nearest is the highest cosine. A part becomes a parquet file with the columns key, shard, image_cluster and text_cluster;
    `clip_negatives.pipelines.given_labels.write_given_labels` reads the folder of all parts. A part whose features changed
    since is assigned again by the task that it belongs to.

    Args:
        parts: folder of `clip_negatives.pipelines.encoded_parts.encode_parts`, a path or a URL.
        centroids: folder of `clip_negatives.pipelines.sampled_centroids.write_centroids`, a path or a URL.
        assignments: folder to fill, a path or a URL.
        task: this task.
        progress: show progress on stderr.

    Returns:
        What was done. `TaskReport.faults` has the parts whose features are not complete.

    Raises:
        ArtifactError: the centroids are of other parts, or `assignments` was begun with other centroids or cannot be written.
    """
    features, stored = parts_folder(parts).opened(), read_centroids(centroids)
    if stored.plan != features.plan:
        fault = f"{centroids} has the centroids of other features than those in {parts}"
        raise ArtifactError(f"{fault}. Write them with clip-negatives centroids {parts}, or name other centroids.")
    sides = {"images": {"centroids": stored.digests["image"]}, "texts": {"centroids": stored.digests["text"]}}
    folder = _assignments_folder(assignments).begun({**sides, "features": {"plan": features.plan}}, features.names)
    normal = {side: F.normalize(rows.float(), dim=1).to(device()) for side, rows in stored.rows.items()}
    assigning = PartAssignment(features, folder, normal)
    with shown(progress):
        return work_through(folder, task, "Assigning parts", is_done=assigning.is_done, work=assigning.assign)


def assigned_tars(table: str, centroids: Mapping[str, str]) -> dict[str, SourceFile]:
    """Return size and digest of each tar of a folder of `assign_parts`; nothing for a table of another program.

    Raises:
        ArtifactError: the folder is not complete, or made with other centroids than these files.
    """
    is_file = not Path(table).is_dir() if is_plain(table) else table.lower().endswith(ENDINGS["parquet"])
    if is_file or _assignments_folder(table).read(PLAN) is None:
        return {}
    folder = _assignments_folder(table).opened()
    records, settings = folder.records(), folder.settings()
    for side, file in centroids.items():
        if settings.get(f"{side}s") != {"centroids": content_digest(file)}:
            raise ArtifactError(f"{table} was not made with the centroids {file}. Name {side}.npy of its centroids folder.")
    return {file: SourceFile(file, size, digest) for record in records for file, size, digest in record["sources"]}


@dataclass(frozen=True, slots=True)
class PartAssignment:
    """Folders of features and assignments, and centroids of unit length by side, float32, shape (K, D)."""

    features: TaskFolder
    folder: TaskFolder
    centroids: Mapping[str, Tensor]

    def is_done(self, number: int, record: Record) -> bool:
        """Return whether the assignments of a part are of its features as they are now."""
        features = self.features.record(self.folder.names[number])
        return features is not None and record["features"] == _digest(features)

    def assign(self, number: int) -> None:
        """Assign and publish a part; DataError if its features are not complete."""
        name = self.folder.names[number]
        if (record := self.features.record(name)) is None:
            raise DataError(f"Part {name} of {self.features.url} is not complete. Run {ENCODE} again.")
        with tempfile.TemporaryDirectory(prefix="clip-negatives-") as home:
            scratch, files = Path(home) / "features", Path(home) / "files"
            scratch.mkdir()
            files.mkdir()
            columns = self._columns(name, record, scratch)
            if self.features.record(name) != record:  # files of two states may have been read
                raise DataError(f"Part {name} of {self.features.url} changed while it was read. Run this command again.")
            pq.write_table(pa.table(columns), files / FILE, compression="zstd")
            self.folder.publish(name, files, _record_of(record))

    def _columns(self, name: str, record: Record, scratch: Path) -> dict[str, Any]:
        """Return the columns of the assignments of a part; DataError if a file is missing or damaged."""
        try:
            samples = pq.read_table(self.features.local(name, SAMPLES, scratch), columns=["key", "shard"])
            columns = {"key": samples["key"], "shard": samples["shard"]}
            for side in MODALITIES:
                rows = np.load(self.features.local(name, f"{side}.npy", scratch), mmap_mode="r", allow_pickle=False)
                if not len(rows) == len(samples) == record["count"]:
                    raise ValueError(f"it has {len(rows)} {side} features, but {len(samples)} samples")
                columns[f"{side}_cluster"] = pa.array(nearest(rows, self.centroids[side]))
        except (OSError, ValueError, EOFError) as error:
            fault = f"Part {name} of {self.features.url} is damaged: {str(error).rstrip('.')}"
            raise DataError(f"{fault}. Remove its folder, and run {ENCODE} again.") from error
        return columns


def nearest(rows: NDArray[Any], centroids: Tensor) -> NDArray[np.int32]:
    """Return the number of the centroid with the highest cosine for each row; `centroids` have unit length.

    Raises:
        ValueError: a row has NaN or infinity.
    """
    labels, step = np.zeros(len(rows), np.int32), max(1, COSINES_AT_ONCE // len(centroids))
    for start in range(0, len(rows), step):
        block = torch.from_numpy(np.array(rows[start : start + step])).to(centroids.device).float()
        cosines, numbers = (block @ centroids.T).max(dim=1)
        if not bool(cosines.isfinite().all()):
            raise ValueError("a feature is NaN or infinite")
        labels[start : start + step] = numbers.int().cpu().numpy()
    return labels


def _record_of(features: Record) -> Record:
    """Return the record of the assignments of features: what they were made of."""
    return {"count": features["count"], "sources": features["sources"], "features": _digest(features)}


def _assignments_folder(url: str | Path) -> TaskFolder:
    return TaskFolder.at(url, "assignments", "clip-negatives assign")


def _digest(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
