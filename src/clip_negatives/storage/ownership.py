"""The only module that replaces, moves or deletes files and folders. It touches nothing that this package did not write.

| function | replaces or deletes | which is ours because |
|---|---|---|
| `OwnedFolder.replacing` | the listed files of an older folder; all others move into the new folder | its manifest lists them |
| `OwnedFolder.tidy` | what a killed process left beside an output | it has a name that we give, and our mark or manifest |
| `new_folder` | nothing: its path must not exist | |
| `replaced_file` | the file at a path | the user named it as the output, or it is inside a folder of ours |
| `remove_file` | a file of a run | the run wrote it |
| `clear_work`, `remove_inside`, `move_from_work` | what is in a work folder | the folder has our mark, `WORK` |
| `remove_work` | a work folder | likewise |

A link is never followed to delete: an output that is a link to a folder or file is replaced where the link points to.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clip_negatives import __version__
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import flush, writing
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.paths import (
    TOOL,
    WORK,
    check_work,
    entries,
    files_in,
    in_the_way_of,
    is_folder,
    is_running,
    is_work,
    output_path,
    this_process,
)
from clip_negatives.storage.safe_reading import read_json

FORMAT = 1  # version of the formats of our folders


@dataclass(frozen=True, slots=True)
class OwnedFolder:
    """A kind of folder that this package writes and replaces.

    Attributes:
        name: the kind, such as "clusters".
        manifest: name of the file that marks a folder of this kind and lists our files in it.
    """

    name: str
    manifest: str

    def check(self, path: str | Path) -> Path:
        """Return the folder that an output path means, with links resolved; call this before any work.

        Raises:
            ArtifactError: the path is a URL, a file or a link to nothing, or a folder that is not empty and not of this kind.
        """
        folder = output_path(path)
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"{folder} is a file, not a folder. Name another path.")
        if folder.exists() and any(folder.iterdir()):
            self._listed(folder)
        return folder

    @contextmanager
    def replacing(self, path: str | Path, *, cached: bool = False) -> Iterator[Path]:
        """Yield a temporary folder that replaces `path` if the block succeeds. The block ends with `write_manifest`.

        Files in the older folder that its manifest does not list, such as notes, move into the new one. A listed file that
        changed in size is not ours any more.

        Args:
            path: the folder, see `check`. Another process that writes it is waited for.
            cached: replace listed files that changed, too: in a cache, they are damaged.

        Raises:
            ArtifactError: `check` fails, a file that is not ours is in the way, or the folder cannot be written.
        """
        target = self.check(path)
        with sole_user(target):
            self.tidy(target)
            if cached and target.exists():
                self._remove_changed(target)
            with _new_partial(target) as folder:
                yield folder
                new = files_in(folder) - {WORK}
                if self._ours(folder) != new:
                    raise RuntimeError(f"the manifest of {folder} does not list its files")
                if blocked := in_the_way_of(new, self._kept(target)):
                    raise ArtifactError(
                        f"{target / blocked[0]} would be replaced, but this command did not write it, or it changed since. "
                        "Move it, or name another path."
                    )
                self._swap(folder, target)

    def tidy(self, output: Path) -> None:
        """Remove what a killed process left beside an output folder, and restore the older folder. Lock `output` first."""
        with writing(output):
            for item in _partials(output, r"\.partial\.old"):
                if output.exists():
                    self._retire(item, output)
                else:
                    item.rename(output)
            _remove_partials(output)

    def write_manifest(
        self, folder: Path, about: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Write the manifest of a folder, and return it: kind and version, `about`, and the size of each file.

        `files` has the entries of each file by its path in the folder, with its size as "bytes". None lists the files there.
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

    def _listed(self, folder: Path) -> dict[str, int]:
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

    def _ours(self, folder: Path) -> set[str]:
        """Return the files of a folder that are ours: the manifest and the listed files, unless their size changed."""
        listed = self._listed(folder)
        return {name for name in files_in(folder) if listed.get(name) == (folder / name).lstat().st_size} | {self.manifest}

    def _kept(self, folder: Path) -> set[str]:
        """Return the files of a folder that are not ours; none of a folder that is empty or missing."""
        return files_in(folder) - self._ours(folder) - {WORK} if entries(folder) else set()

    def _remove_changed(self, folder: Path) -> None:
        with writing(folder):
            for name in (files_in(folder) & self._listed(folder).keys()) - self._ours(folder):
                (folder / name).unlink()

    def _swap(self, folder: Path, target: Path) -> None:
        """Replace `target` by the temporary `folder`; a killed process leaves what `tidy` restores."""
        old = folder.with_name(f"{folder.name}.old")
        with writing(target):
            for item in [*folder.rglob("*"), folder]:
                flush(item)
            try:
                if target.exists():
                    target.rename(old)
                folder.rename(target)
            finally:
                if old.exists() and not target.exists():
                    old.rename(target)
            (target / WORK).unlink()
            flush(target.parent)
            if old.exists():
                self._retire(old, target)

    def _retire(self, old: Path, target: Path) -> None:
        """Move the files of an older folder that are not ours into its successor, and remove the rest, the manifest last."""
        for name in self._kept(old):
            moved = target / name
            if moved.exists() and not name.endswith("/"):
                raise ArtifactError(f"Both {old / name} and {moved} exist, and the first was not written by us. Move it.")
            if not moved.exists():
                moved.parent.mkdir(parents=True, exist_ok=True)
                (old / name).rename(moved)
        for item in entries(old):
            if item.name != self.manifest:
                _remove(item)
        _remove(old)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, which must not exist, if the block succeeds; ArtifactError if it cannot."""
    path = output_path(path)
    with _new_partial(path, marked=False) as folder:
        yield folder
        with writing(path):
            folder.rename(path)


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` if the block succeeds, or raise ArtifactError."""
    path = output_path(path)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not a file. Name a file in it.")
    partial = path.with_name(f".{path.name}.{this_process()}.{secrets.token_hex(4)}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path)
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield partial
            flush(partial)
            partial.replace(path)
            flush(path.parent)
    finally:
        with suppress(OSError):  # for example, the parent of `path` is a file
            partial.unlink()


def remove_file(file: Path) -> None:
    """Remove a file that this run wrote, if it is still there."""
    file.unlink(missing_ok=True)


def claim_work(folder: Path) -> None:
    """Make a work folder, or check that it is one. Lock its output first.

    Raises:
        ArtifactError: the folder has files and no mark of ours, or cannot be written.
    """
    check_work(folder)
    with writing(folder):
        _remove_partials(folder)
    if is_work(folder):
        return
    with _new_partial(folder) as partial, writing(folder):
        partial.rename(folder)


def clear_work(folder: Path, kept: Collection[Path] = ()) -> None:
    """Remove what is in a work folder, except for `kept`."""
    remove_inside(folder, set(entries(folder)) - {folder / WORK, *kept})


def remove_inside(work: Path, items: Iterable[Path]) -> None:
    """Remove files and folders inside a work folder; missing ones are left out."""
    for item in items:
        if not (is_work(work) and item.parent.resolve().is_relative_to(work.resolve())):
            raise RuntimeError(f"{item} is not in a work folder")
        with writing(work), suppress(FileNotFoundError):
            _remove(item)


def move_from_work(files: Iterable[Path], folder: Path) -> None:
    """Move files of a work folder into a folder on the same disk."""
    for file in files:
        if not any(map(is_work, file.parents)):
            raise RuntimeError(f"{file} is not in a work folder")
        file.rename(folder / file.name)


def remove_work(folder: Path) -> None:
    """Remove a work folder, if it is there. A killed process leaves a work folder with fewer files."""
    if is_work(folder):
        with suppress(OSError):  # network disks keep mapped files until the process ends
            for item in entries(folder):
                if item.name != WORK:  # the mark last
                    _remove(item)
            shutil.rmtree(folder)


@contextmanager
def _new_partial(path: Path, *, marked: bool = True) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`, with our mark if `marked`; it is removed unless the block renamed it."""
    folder = _temporary(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            if marked:
                (folder / WORK).write_text(json.dumps({"tool": TOOL, "format": FORMAT}) + "\n")
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _partials(path: Path, ending: str = r"\.partial") -> list[Path]:
    """Return the folders beside `path` that have the names of temporary folders."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{ending}")
    return [item for item in entries(path.parent) if name.fullmatch(item.name) and is_folder(item)]


def _remove_partials(path: Path) -> None:
    """Remove temporary folders that a killed process left beside `path`."""
    for item in _partials(path):
        if is_work(item) or {entry.name for entry in entries(item)} <= {WORK}:  # half of the mark may be written
            shutil.rmtree(item)


def _remove(item: Path) -> None:
    if is_folder(item):
        shutil.rmtree(item)
    else:
        item.unlink()


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes of this machine left of `path`."""
    host, _, _ = this_process().partition("-")
    name = re.compile(rf"\.{re.escape(path.name)}\.{host}-([0-9]+)\.[0-9a-f]{{8}}\.partial")
    for item in entries(path.parent):
        if (match := name.fullmatch(item.name)) and not is_running(int(match[1])):
            item.unlink(missing_ok=True)
