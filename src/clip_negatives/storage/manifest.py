"""Manifests of clusters and labels folders: data and settings of the clusters, size and SHA-256 of the files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clip_negatives.advice import remedies
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import digest
from clip_negatives.storage.folder_kind import FORMAT
from clip_negatives.storage.ownership import OwnedFolder
from clip_negatives.storage.safe_reading import read_json

T = TypeVar("T")

CLUSTERS, SAMPLES = "clusters.safetensors", "samples.parquet"  # of a clusters folder
SHARDS = "shards.parquet"  # of a labels folder
MANIFEST, PLAN = "manifest.json", "plan.json"  # mark a clusters folder, and a folder of resharded tars

MISSING_SHARDS = "missing_shards"  # entry of a manifest: tars of the data that were left out, because they were missing
TRIES = 10  # attempts to read a folder while other processes replace it
PAUSE = 0.02  # seconds before the next attempt; a folder that is being replaced is missing for a shorter time
OWN_ENTRIES = ("tool", "kind", "format", "package_version", "created", "files")  # about the folder itself, not its clusters


@dataclass(frozen=True, slots=True)
class FolderFormat(OwnedFolder):
    """Format of a clusters folder or a labels folder. The file name of the manifest tells the two apart.

    Attributes:
        required: files that every folder of this format has.
        command: command that writes a folder.
    """

    required: tuple[str, ...]
    command: str

    def is_at(self, path: Path) -> bool:
        """Return whether `path` has a manifest of this format."""
        return os.path.exists(path / self.manifest)  # noqa: PTH110  (False for a path that is too long)

    def write_digests(
        self, folder: Path, origin: Mapping[str, Any], files: Iterable[Path], unhashed: Iterable[Path] = ()
    ) -> dict[str, Any]:
        """Write and return the manifest of a folder.

        Args:
            folder: the folder.
            origin: further entries of the manifest.
            files: files whose size and SHA-256 the manifest lists; they may still be in another folder.
            unhashed: files in `folder`; the manifest lists only their size.
        """
        listed: dict[str, dict[str, Any]] = {}
        listed |= {file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} for file in files}
        listed |= {str(file.relative_to(folder)): {"bytes": file.stat().st_size} for file in unhashed}
        return self.write_manifest(folder, origin, listed)

    def check_is_at(self, path: Path) -> None:
        """Raise ArtifactError if `path` has no manifest of this format."""
        if not self.is_at(path):
            raise ArtifactError(f"{path} is not a {self.name} folder: no {self.manifest}. Write one with {self.command}.")

    def read_manifest(self, path: Path, *, unhashed: Collection[str] = ()) -> dict[str, Any]:
        """Check size and SHA-256 of the files of a folder (only the size of `unhashed` files), and return its manifest."""
        with self.reading(path, self.manifest):
            self.check_is_at(path)
            manifest = read_json(path / self.manifest)
            version, files = manifest.get("format"), manifest.get("files")
            if version != FORMAT:
                fault = f"has format {version!r}, but this version reads format {FORMAT}"
                raise ArtifactError(f"The {self.name} folder {path} {fault}. Run {self.command} again.")
            if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
                raise ValueError("the list of files is missing")
            checked = {name: entry for name, entry in files.items() if "sha256" in entry}
            if not set(self.required) <= set(checked):
                raise ValueError("the list of files is incomplete")
        for name, entry in checked.items():
            file = path / name
            with self.reading(path, name):
                if file.parent != path or not file.is_file() or file.stat().st_size != entry["bytes"]:
                    raise ValueError("missing, or of another size than in the manifest")
                if name not in unhashed and digest(file) != entry["sha256"]:
                    raise ValueError("changed after it was written")
        return manifest

    def unchanged(self, path: Path, read: Callable[[], T]) -> T:
        """Return ``read()``. If another process replaces the folder meanwhile, call `read` again: files must not be mixed."""
        for _ in range(TRIES):
            before = self._stamp(path)
            try:
                result = read()
            except ArtifactError:
                if before is None:
                    time.sleep(PAUSE)
                if self._stamp(path) == before:
                    raise
            else:
                if self._stamp(path) == before:
                    return result
        return read()

    def _stamp(self, path: Path) -> tuple[int, int, int] | None:
        """Return inode and times of the manifest, which change when it is replaced; None if it is missing."""
        try:
            status = (path / self.manifest).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns

    @contextmanager
    def reading(self, path: Path, file: str = "") -> Iterator[None]:
        """Turn OSError and ValueError into an ArtifactError that names the folder `path` and, if given, its `file`."""
        try:
            yield
        except (OSError, ValueError) as error:
            fault = getattr(error, "strerror", None) or error
            where = f"{file}: " if file else ""
            if isinstance(error, OSError) and (repair := remedies(error)):
                raise ArtifactError(f"The {self.name} folder {path} cannot be read: {where}{fault}. {repair}") from error
            raise ArtifactError(
                f"The {self.name} folder {path} is damaged: {where}{fault}. Run {self.command} again."
            ) from error


CLUSTERS_FOLDER = FolderFormat("clusters", MANIFEST, (CLUSTERS, SAMPLES), command="clip-negatives prepare")
LABELS_FOLDER = FolderFormat("labels", "labels.json", (CLUSTERS, SHARDS), command="clip-negatives labels")


REPORT_FOLDER = OwnedFolder("report", "report.json")
CENTROIDS_FOLDER = OwnedFolder("centroids", "centroids.json")


def check_clusters(path: Path) -> None:
    """Raise ArtifactError if `path` is not a clusters folder, without reading its files."""
    if LABELS_FOLDER.is_at(path):
        repair = "Name the clusters folder that the labels were made from: labels work only in training on webdataset streams."
        raise ArtifactError(f"{path} is a labels folder, not a clusters folder. {repair}")
    CLUSTERS_FOLDER.check_is_at(path)


def missing_shards(path: Path) -> frozenset[str]:
    """Return the tars that were missing when a clusters or labels folder was made; none without a readable manifest."""
    listed: set[str] = set()
    for name in (MANIFEST, LABELS_FOLDER.manifest):
        with suppress(OSError, ValueError):
            listed |= set(read_json(path / name).get(MISSING_SHARDS, ()))
    return frozenset(listed)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256", ""), str)
