"""The output of `reshard`: new tars, a labels folder, settings and sizes, on a local disk or in an object store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_negatives.dataset.images import file_size
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.labels_folder import LabelsFolder, read_labels
from clip_negatives.storage.manifest import PLAN
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.paths import check_resumable, output_path
from clip_negatives.storage.safe_reading import one_line, read_json

# Files of the output, besides its settings: number of samples of each shard (for open_clip), and labels folder.
SIZES, LABELS = "sizes.json", "labels"


def open_output(location: str | Path, work_folder: str | Path | None = None) -> NewShards:
    """Return the output at a path; ArtifactError unless it is free or an earlier call wrote to it."""
    return NewShards(check_resumable(location, PLAN), None if work_folder is None else output_path(work_folder))


def shard_name(number: int) -> str:
    """Return the file name of a new tar."""
    return f"{number:06d}.tar"


class NewShards:
    """An output on a local disk.

    Attributes:
        work: folder for temporary files.
        labels: the labels folder, on a local disk.
        locked: path whose lock belongs to the run.
    """

    def __init__(self, folder: Path, work_folder: Path | None) -> None:
        self._folder = folder
        self.work = (work_folder or folder.parent) / f".{folder.name}.buckets"
        self.labels, self.locked = folder / LABELS, folder

    def address(self, name: str) -> str:
        """Return the path or URL of a file."""
        return str(self._folder / name)

    def size(self, name: str) -> int | None:
        """Return the size of a file, None if it does not exist."""
        return file_size(self.address(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary file that becomes the file `name` if the block succeeds."""
        with replaced_file(self._folder / name) as partial:
            yield partial

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file; ArtifactError if it is damaged."""
        try:
            return self._json(name)
        except (OSError, ValueError) as error:
            fault = f"{self.address(name)} is damaged: {one_line(error)}"
            raise ArtifactError(f"{fault}. Delete its folder or choose another output folder.") from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        with self.writing(name) as partial:
            partial.write_text(json.dumps(content) + "\n")

    def read_labels(self) -> LabelsFolder:
        """Return the labels folder; ArtifactError if it is missing or damaged."""
        return read_labels(self.labels)

    def publish_labels(self) -> None:
        """Bring the labels folder, once it is written, to its place."""

    def _json(self, name: str) -> dict[str, Any]:
        return read_json(self._folder / name, "json_bytes")
