"""Small folders that a command writes whole, on a disk or in an object store.

A folder in an object store gets our mark first, then its files, then its manifest, and loses the mark. So an upload that is
interrupted leaves no manifest, and the next one may replace what the mark lists.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.folder_kind import FORMAT, FolderKind
from clip_negatives.storage.paths import TOOL, WORK, files_in
from clip_negatives.storage.safe_reading import parse_json
from clip_negatives.storage.store_errors import store_errors
from clip_negatives.storage.task_folder import TaskFolder


def is_store(location: str | Path) -> bool:
    """Return whether an output is a URL of an object store."""
    return "://" in str(location) and not str(location).startswith(("file:", "local:"))


@contextmanager
def local_output(kind: FolderKind, output: str | Path) -> Iterator[Path]:
    """Yield the local path of an output folder; if `output` is a URL, upload the folder at the end.

    The block writes the folder with `OwnedFolder.replacing`. A folder for a URL waits in the temporary folder of the system.

    Raises:
        ArtifactError: `output` is not empty and not of this kind, cannot be read or written, or has a file in the way that
            this package did not write.
    """
    if not is_store(output):
        yield kind.check(output)
        return
    stored = TaskFolder.at(str(output).rstrip("/"), kind.name, f"clip-negatives {kind.name}")
    _files(kind, stored)  # errors come before the work
    with tempfile.TemporaryDirectory(prefix="clip-negatives-") as home:
        folder = Path(home) / kind.name
        yield folder
        _upload(kind, folder, stored)


def _upload(kind: FolderKind, folder: Path, stored: TaskFolder) -> None:
    sizes, ours = _files(kind, stored)
    names = files_in(folder)
    if blocked := sorted(names & sizes.keys() - ours):
        fault = f"{stored.url}/{blocked[0]} would be replaced, but this command did not write it, or it changed since"
        raise ArtifactError(f"{fault}. Move it, or name another URL.")
    stored.write(WORK, json.dumps({"tool": TOOL, "format": FORMAT, "files": sorted(names | ours)}).encode())
    stored.remove(kind.manifest)
    for name in sorted(names - {kind.manifest}):
        stored.copy(folder / name, name)
    for name in sorted(ours - names - {WORK}):
        stored.remove(name)
    stored.copy(folder / kind.manifest, kind.manifest)
    stored.remove(WORK)


def _files(kind: FolderKind, stored: TaskFolder) -> tuple[dict[str, int], set[str]]:
    """Return the size of each file of a stored folder, and the names of the files that are ours.

    Raises:
        ArtifactError: it has files, but neither our mark nor a manifest of this kind.
    """
    with store_errors(stored.url):
        stored.system.invalidate_cache(stored.root)
        entries = stored.system.find(stored.root, detail=True)
    sizes = {path.removeprefix(stored.root).lstrip("/"): int(entry["size"]) for path, entry in entries.items()}
    listed = _listed(stored, kind.manifest, kind.name)
    mark = _listed(stored, WORK, None)
    if sizes and listed is None and mark is None:
        fault = f"{stored.url} has files, but no {kind.manifest} of {TOOL}"
        raise ArtifactError(f"{fault}. Name another URL.")
    unchanged = {name for name, size in (listed or {}).items() if sizes.get(name) == size}
    return sizes, unchanged | (mark or {}).keys() | ({kind.manifest} if listed is not None else set())


def _listed(stored: TaskFolder, file: str, kind: str | None) -> dict[str, int] | None:
    """Return the files that a manifest or our mark lists, with their sizes (0 in the mark); None if it is not ours."""
    try:
        content = parse_json(stored.read(file) or b"")
        if content["tool"] == TOOL and content["format"] == FORMAT and content.get("kind") == kind:
            files = content["files"]
            return {name: entry["bytes"] for name, entry in files.items()} if kind else dict.fromkeys(files, 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return None
