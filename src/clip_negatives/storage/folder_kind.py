"""Kinds of folders that this package writes: what their manifest lists, and which files are ours. Nothing is deleted here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clip_negatives import __version__
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.paths import TOOL, WORK, entries, files_in, output_path
from clip_negatives.storage.safe_reading import read_json

FORMAT = 1  # version of the formats of our folders


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of folder that this package writes, recognised by its manifest.

    Attributes:
        name: name of the kind, such as "clusters".
        manifest: name of the file that marks a folder of this kind and lists our files in it.
    """

    name: str
    manifest: str

    def check(self, path: str | Path) -> Path:
        """Return the folder of an output path, with links resolved. Call this first, so that errors come before the work.

        Raises:
            ArtifactError: the path is a URL, a file or a link to nothing, or a folder that is not empty and not of this kind.
        """
        folder = output_path(path)
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"{folder} is a file, not a folder. Name another path.")
        if folder.exists() and any(folder.iterdir()):
            self.listed(folder)
        return folder

    def write_manifest(
        self, folder: Path, about: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Write the manifest of a folder, and return it: kind and version, `about`, and the size of each file.

        `files` maps each path in the folder to the entries of that file, with the size as "bytes". None: list all files there.
        """
        if files is None:
            names = sorted(files_in(folder) - {WORK})
            files = {name: {"bytes": (folder / name).stat().st_size} for name in names}
        manifest = {
            "tool": TOOL,
            "kind": self.name,
            "format": FORMAT,
            "package_version": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **about,
            "files": dict(files),
        }
        (folder / self.manifest).write_text(json.dumps(manifest, indent=2) + "\n")
        return manifest

    def listed(self, folder: Path) -> dict[str, int]:
        """Return the size of each file in the manifest of a folder, or raise ArtifactError if it is not of this kind."""
        file = folder / self.manifest
        reason = f"it has files, but no {self.manifest}"
        try:
            manifest = read_json(file)
            sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
            if (manifest["tool"], manifest["kind"], manifest["format"]) == (TOOL, self.name, FORMAT):
                return sizes
            reason = f"its {self.manifest} is of another program, kind or version"
        except OSError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError):
            reason = f"its {self.manifest} was not written by {TOOL}"
        raise ArtifactError(f"{folder} is not a {self.name} folder: {reason}. Name another path.")

    def ours(self, folder: Path) -> set[str]:
        """Return the files of a folder that are ours: the manifest, and the listed files whose size did not change."""
        listed = self.listed(folder)
        return {name for name in files_in(folder) if listed.get(name) == (folder / name).lstat().st_size} | {self.manifest}

    def not_ours(self, folder: Path) -> set[str]:
        """Return the files of a folder that are not ours; an empty set if the folder is empty or missing."""
        return files_in(folder) - self.ours(folder) - {WORK} if entries(folder) else set()
