"""The output of `reshard`: new tars, a labels folder, settings and sizes, on a local disk or in an object store."""

from __future__ import annotations

import hashlib
import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from clip_negatives.advice import argument
from clip_negatives.dataset.images import file_size
from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.storage.atomic import writing
from clip_negatives.storage.labels_folder import read_labels
from clip_negatives.storage.limits import limit
from clip_negatives.storage.manifest import CLUSTERS, LABELS_FOLDER, PLAN, SHARDS
from clip_negatives.storage.ownership import remove_file, replaced_file
from clip_negatives.storage.paths import check_resumable, files_in, output_path
from clip_negatives.storage.safe_reading import one_line, parse_json, read_json
from clip_negatives.storage.source_files import SourceFile
from clip_negatives.storage.store_errors import store_errors
from clip_negatives.storage.stored_folder import is_store

# Files of the output, besides its settings: number of samples of each shard (for open_clip), and labels folder.
SIZES, LABELS = "sizes.json", "labels"


def open_output(location: str | Path, work_folder: str | Path | None = None) -> NewShards:
    """Return the output at a path or a URL of an object store.

    Raises:
        ArtifactError: the output has files that this command did not write, or cannot be reached.
        InputError: it is a URL, and `work_folder` is None.
    """
    work = None if work_folder is None else output_path(work_folder)
    if not is_store(location):
        return NewShards(check_resumable(location, PLAN), work)
    if work is None:
        fault = f"{location} is a URL, but the samples wait on a local disk"
        raise InputError(f"{fault}. Name a folder with enough space: {argument('work_folder', 'work_folder=')} FOLDER.")
    return StoredShards(str(location).rstrip("/"), work)


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
        self.work = _work(folder.parent, folder.name) if work_folder is None else _distinct_work(work_folder, str(folder))
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

    def labelled(self) -> list[SourceFile]:
        """Return the tars in the labels folder; ArtifactError if it is missing or damaged."""
        return list(read_labels(self.labels).shards.sources.values())

    def publish_labels(self) -> None:
        """Bring the labels folder, once it is written, to its place."""

    def _json(self, name: str) -> dict[str, Any]:
        return read_json(self._folder / name, "json_bytes")


class StoredShards(NewShards):
    """An output in an object store. Files are written on a local disk, and uploaded as a whole."""

    def __init__(self, url: str, work_folder: Path) -> None:
        self._url = url
        self.work = self.locked = _distinct_work(work_folder, url)
        self.labels = self.work / LABELS
        with store_errors(self._url):
            self._system, self._path = fsspec.core.url_to_fs(url)
            self._system.invalidate_cache(self._path)
            files = self._system.ls(self._path, detail=False) if self._system.exists(self._path) else []
        if files and self.size(PLAN) is None:
            raise ArtifactError(f"{url} was not written by this command. Name another URL.")

    def address(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self._url}/{name}"

    def size(self, name: str) -> int | None:
        """Return the size of an object, None if it does not exist."""
        path = f"{self._path}/{name}"
        with store_errors(self._url):
            self._system.invalidate_cache(path)
            try:
                return int(self._system.info(path)["size"])
            except FileNotFoundError:
                return None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary file that is uploaded if the block succeeds."""
        file = self.work / f"{secrets.token_hex(4)}-{name}"
        try:
            with writing(file):
                yield file
            with store_errors(self._url):
                self._system.put_file(str(file), f"{self._path}/{name}")
        finally:
            remove_file(file)

    def labelled(self) -> list[SourceFile]:
        """Download the labels folder without the labels, and return its tars; ArtifactError if it is missing or damaged."""
        with tempfile.TemporaryDirectory(prefix="clip-negatives-") as home:
            with store_errors(self._url):
                for name in (CLUSTERS, SHARDS, LABELS_FOLDER.manifest):
                    self._system.get_file(f"{self._path}/{LABELS}/{name}", f"{home}/{name}")
            return list(read_labels(home).shards.sources.values())

    def publish_labels(self) -> None:
        """Upload the labels folder, its manifest last."""
        names = sorted(files_in(self.labels), key=lambda name: name == LABELS_FOLDER.manifest)
        with store_errors(self._url):
            for group in (names[:-1], names[-1:]):
                self._system.put(
                    [str(self.labels / name) for name in group], [f"{self._path}/{LABELS}/{name}" for name in group]
                )

    def _json(self, name: str) -> dict[str, Any]:
        with store_errors(self._url):
            content = self._system.cat_file(f"{self._path}/{name}", end=limit("json_bytes"))
        return dict(parse_json(content))


def _work(parent: Path, name: str) -> Path:
    return parent / f".{name}.buckets"


def _distinct_work(parent: Path, output: str) -> Path:
    """Return the work folder of an output elsewhere; outputs of the same name have their own."""
    return _work(parent, f"{output.rpartition('/')[2]}-{hashlib.sha256(output.encode()).hexdigest()[:8]}")
