"""Read-only checks of paths: whether an output can be written, and which files and marks a folder has."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.safe_reading import read_json

TOOL = "clip-negatives"  # in each manifest and mark
WORK = "clip-negatives.json"  # file that marks a work folder, where this package keeps its unfinished or private files


def output_path(path: str | Path) -> Path:
    """Return the absolute path of an output, with links resolved.

    Raises:
        ArtifactError: the path is a URL, or a link to nothing.
    """
    if scheme := re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", str(path)):
        slashes = "//" if scheme[0] == "file:/" else "/"  # `Path` reduces several slashes to one
        url = f"{scheme[0]}{slashes}{str(path)[scheme.end() :].lstrip('/')}"
        raise ArtifactError(
            f"{url} is a URL, but results are written to a local disk. Name a local path, and copy it from there."
        )
    path = Path(path)
    try:
        if path.is_symlink():
            path.resolve(strict=True)
        return path.resolve()
    except FileNotFoundError as error:
        fault = f"{path} is a link to {path.readlink()}, which does not exist"
        raise ArtifactError(f"{fault}. Create it, or name another path.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        reason = "it is in a circle of links" if isinstance(error, RuntimeError) or error.errno == errno.ELOOP else error
        raise ArtifactError(f"{path} cannot be used: {reason}. Name another path.") from error


def check_work(folder: Path) -> None:
    """Raise ArtifactError if a path cannot be a work folder: it is a file, or a folder with files and without our mark."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and (is_work(folder) or not entries(folder)))):
        raise ArtifactError(f"{folder} is in the way: it was not written by {TOOL}. Move it, or name another path.")


def check_resumable(path: str | Path, settings: str) -> Path:
    """Return `output_path`; ArtifactError unless it is free, or has the file `settings` of an earlier call to continue."""
    folder = output_path(path)
    if folder.exists() and not (folder.is_dir() and ((folder / settings).exists() or not entries(folder))):
        raise ArtifactError(f"{folder} was not written by this command. Name another path.")
    return folder


def check_writable(path: Path) -> None:
    """Raise ArtifactError if a path cannot be written, see `obstacle`."""
    if (folder := obstacle(path)) is not None:
        raise ArtifactError(f"{path} cannot be written: {folder} is not a writable folder. Name another path.")


def obstacle(path: Path) -> Path | None:
    """Return the nearest existing parent of a path if it is a file or a folder that cannot be written, else None."""
    parent = next(folder for folder in path.absolute().parents if os.access(folder, os.F_OK))
    return None if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK) else parent


def is_work(folder: Path) -> bool:
    """Return whether a folder has our mark."""
    try:
        return bool(read_json(folder / WORK)["tool"] == TOOL)
    except (OSError, ValueError, KeyError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def entries(folder: Path) -> list[Path]:
    """Return the files and folders in a folder; none if it does not exist."""
    return list(folder.iterdir()) if folder.is_dir() else []


def files_in(folder: Path) -> set[str]:
    """Return the paths of all files, links and empty folders in a folder, without following links; folders end with a slash."""
    paths = set[str]()
    for parent, folders, files in os.walk(folder):
        relative = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        links = [name for name in folders if Path(parent, name).is_symlink()]
        paths |= {str(relative / name) for name in (*files, *links)}
        if not folders and not files and parent != str(folder):
            paths.add(f"{relative}/")
    return paths


def in_the_way_of(files: Collection[str], existing: Collection[str]) -> list[str]:
    """Return the `existing` paths that cannot be in one folder with `files`, sorted. Paths are written as by `files_in`."""
    taken, folders = set(files), {str(parent) for file in files for parent in PurePosixPath(file).parents}

    def is_blocked(name: str) -> bool:
        path = PurePosixPath(name)
        return not taken.isdisjoint(map(str, (path, *path.parents))) or (str(path) in folders and not name.endswith("/"))

    return sorted(filter(is_blocked, existing))


def this_process() -> str:
    """Return the identifier of this machine and process in the names of temporary files."""
    return f"{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]}-{os.getpid()}"


def is_running(process: int) -> bool:
    """Return whether the process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
