"""The only module that replaces, moves or deletes files and folders.

It deletes only files that this package wrote:

| function | replaces, moves or deletes | why it may |
|---|---|---|
| `OwnedFolder.replacing` | listed files of the older folder; unlisted ones move into the new folder | we wrote listed files |
| `OwnedFolder.tidy` | temporary folders of killed processes, beside an output | they have our names and our mark or manifest |
| `new_folder` | nothing: its path must not exist | |
| `replaced_file` | the file at a path | `storage.output_file` found that we wrote it, or it is inside a folder of ours |
| `remove_file` | a file of a run | the run wrote it |
| `remove_stored` | a record or a claim of a part, also in an object store | it is in a folder with our plan |
| `clear_work`, `remove_inside`, `move_from_work` | contents of a work folder | the folder has our mark, `WORK` |
| `remove_work` | a work folder | the folder has our mark |

Deleting never follows links. If an output is a link, the file or folder that it points to is replaced.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import flush, writing
from clip_negatives.storage.folder_kind import FORMAT, FolderKind
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


class OwnedFolder(FolderKind):
    """A kind of folder that this package writes and replaces."""

    @contextmanager
    def replacing(self, path: str | Path, *, cached: bool = False) -> Iterator[Path]:
        """Yield a temporary folder that replaces `path` if the block succeeds. The block ends with `write_manifest`.

        Files in the older folder that its manifest does not list, such as notes, move into the new folder. So do listed files
        whose size changed: the user may have edited them.

        Args:
            path: the folder, see `check`. If another process writes it, this one waits.
            cached: also replace listed files whose size changed: in a cache, they are damaged.

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
                new_files = files_in(folder) - {WORK}
                if self.ours(folder) != new_files:
                    raise RuntimeError(f"the manifest of {folder} does not list its files")
                if blocked := in_the_way_of(new_files, self.not_ours(target)):
                    raise ArtifactError(
                        f"{target / blocked[0]} would be replaced, but this command did not write it, or it changed since. "
                        "Move it, or name another path."
                    )
                self._swap(folder, target)

    def tidy(self, output: Path) -> None:
        """Remove temporary folders that a killed process left beside an output; restore the older folder if it is missing.

        Lock `output` first.
        """
        with writing(output):
            for old in _partials(output, r"\.partial\.old"):
                if output.exists():
                    self._retire(old, output)
                else:
                    old.rename(output)
            _remove_partials(output)

    def _remove_changed(self, folder: Path) -> None:
        """Remove the listed files whose size changed."""
        with writing(folder):
            for name in (files_in(folder) & self.listed(folder).keys()) - self.ours(folder):
                (folder / name).unlink()

    def _swap(self, folder: Path, target: Path) -> None:
        """Replace `target` by the temporary `folder`. If the process is killed, the next `tidy` repairs the state."""
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
        """Move the files of an older folder that are not ours into `target`; remove all other files, the manifest last."""
        for name in self.not_ours(old):
            destination = target / name
            if destination.exists() and not name.endswith("/"):
                raise ArtifactError(f"Both {old / name} and {destination} exist, and the first was not written by us. Move it.")
            if not destination.exists():
                destination.parent.mkdir(parents=True, exist_ok=True)
                (old / name).rename(destination)
        for item in entries(old):
            if item.name != self.manifest:
                _remove(item)
        _remove(old)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block succeeds; `path` must not exist.

    Raises:
        ArtifactError: `path` is a URL, or cannot be written.
    """
    path = output_path(path)
    with _new_partial(path, marked=False) as folder:
        yield folder
        with writing(path):
            folder.rename(path)


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` if the block succeeds; ArtifactError if `path` cannot be written."""
    path = output_path(path)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not a file. Name a file in it.")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is a pipe or a device, not a file. Name another path.")
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


def remove_stored(system: Any, file: str) -> None:
    """Remove a file in a file system of fsspec, if it is still there."""
    with suppress(FileNotFoundError):
        system.rm_file(file)


def claim_work(folder: Path) -> None:
    """Create a work folder, or check that an existing folder is one. Lock its output first.

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
    """Remove the contents of a work folder, except for `kept`."""
    remove_inside(folder, set(entries(folder)) - {folder / WORK, *kept})


def remove_inside(work: Path, items: Iterable[Path]) -> None:
    """Remove files and folders inside a work folder; ignore missing ones."""
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
    """Remove a work folder, if it exists. Its mark goes last: if the process is killed, the rest is still a work folder."""
    if is_work(folder):
        with suppress(OSError):  # network disks keep memory-mapped files until the process ends
            for item in entries(folder):
                if item.name != WORK:
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
    """Return the folders beside `path` whose names are those of its temporary folders."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}{ending}")
    return [item for item in entries(path.parent) if name.fullmatch(item.name) and is_folder(item)]


def _remove_partials(path: Path) -> None:
    """Remove temporary folders that a killed process left beside `path`."""
    for item in _partials(path):
        if is_work(item) or {entry.name for entry in entries(item)} <= {WORK}:  # the mark may be half written
            shutil.rmtree(item)


def _remove(item: Path) -> None:
    if is_folder(item):
        shutil.rmtree(item)
    else:
        item.unlink()


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of `path` that killed processes of this machine left."""
    host, _, _ = this_process().partition("-")
    name = re.compile(rf"\.{re.escape(path.name)}\.{host}-([0-9]+)\.[0-9a-f]{{8}}\.partial")
    for item in entries(path.parent):
        if (match := name.fullmatch(item.name)) and not is_running(int(match[1])):
            item.unlink(missing_ok=True)
