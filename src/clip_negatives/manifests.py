"""Manifests of our folders: what a folder was made from, and the size and SHA-256 of its other files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clip_negatives import __version__
from clip_negatives.atomic import digest
from clip_negatives.errors import ArtifactError
from clip_negatives.reading import read_json

FORMAT = 1
"""Version of the layouts; a folder of another version is refused."""


@dataclass(frozen=True, slots=True)
class FolderKind:
    """Hold what is particular to a kind of folder.

    Attributes:
        name: of the kind.
        manifest: name of its manifest; that each kind has its own keeps one from being taken, or replaced, for another.
        files: that every such folder has.
        make: how one is made.
        again: what to do with one that is damaged.
    """

    name: str
    manifest: str
    files: tuple[str, ...]
    make: str
    again: str

    def is_at(self, path: Path) -> bool:
        """Return whether a folder is of this kind, as its manifest's name says."""
        return (path / self.manifest).exists()

    def write_manifest(self, folder: Path, made_from: Mapping[str, Any], files: Iterable[Path]) -> None:
        """Write the manifest of a folder.

        Args:
            folder: the folder.
            made_from: what it was made from, as JSON takes it.
            files: to list; they may be elsewhere still.
        """
        whole = {
            "format": FORMAT,
            "package_version": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **made_from,
            "files": {file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} for file in files},
        }
        (folder / self.manifest).write_text(json.dumps(whole, indent=2) + "\n")

    def read_manifest(self, path: Path) -> dict[str, Any]:
        """Return the manifest of a folder; the files that it lists are not looked at.

        Raises:
            ArtifactError: it is missing, damaged or of another format.
        """
        try:
            manifest = read_json(path / self.manifest)
            version, files = manifest["format"], manifest["files"]
            sound = isinstance(files, dict) and all(
                isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str) for entry in files.values()
            )
        except FileNotFoundError:
            raise ArtifactError(
                f"Expected a {self.name} folder at {path}, got none (no {self.manifest}). Make one: {self.make}."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(path, f"{self.manifest} cannot be read: {error}") from error
        if version != FORMAT:
            raise ArtifactError(f"Expected a {self.name} folder of format {FORMAT}, got {version!r} at {path}. {self.again}.")
        if not sound or not set(self.files) <= set(files):
            raise self.damaged(path, f"{self.manifest} does not list the files")
        return manifest

    def check_files(self, path: Path, manifest: Mapping[str, Any], *, unsummed: tuple[str, ...] = ()) -> None:
        """Make sure that the files of a folder are there, with the size and the sum that its manifest gives.

        Args:
            path: the folder.
            manifest: what `read_manifest` returned.
            unsummed: files whose size alone is looked at, as they may be large.

        Raises:
            ArtifactError: they are not.
        """
        for name, entry in manifest["files"].items():
            file = path / name
            try:
                if file.parent != path or not file.is_file() or file.stat().st_size != entry["bytes"]:
                    raise self.damaged(path, f"{name} is missing or has another size")
                if name not in unsummed and digest(file) != entry["sha256"]:
                    raise self.damaged(path, f"{name} was changed")
            except OSError as error:
                raise self.damaged(path, f"{name} cannot be read: {error.strerror}") from error

    def damaged(self, path: Path, fault: object) -> ArtifactError:
        """Return the error that says what is wrong with a folder."""
        return ArtifactError(f"Expected a whole {self.name} folder at {path}, got a damaged one: {fault}. {self.again}.")
