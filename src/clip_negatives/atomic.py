"""Files and folders that appear under their name whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor


_MADE = r"[a-z0-9_]{8}\.partial(\.old)?"
"""What `replaced_folder` adds to names of folders."""


@contextmanager
def replaced_folder(path: Path, *, known_by: str) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its place when the block ends well, else vanishes.

    Args:
        path: the folder to make.
        known_by: name of a file that says that an existing folder is one of ours and may be replaced.

    Raises:
        ArtifactError: `path` is something else, or cannot be written.
    """
    refuse_foreign(path, known_by=known_by)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    old = folder.with_name(f"{folder.name}.old")
    try:
        yield folder
        for item in [*folder.rglob("*"), folder]:
            _flush(item)
        folder.chmod(0o755)  # mkdtemp gave it to this user alone
        if path.exists():
            path.rename(old)
        folder.rename(path)
        _flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (folder, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Say of a file or folder that is changed in the block that it cannot be, where the system refuses.

    Raises:
        ArtifactError: it does.
    """
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


def remove_folder(folder: Path, path: Path) -> None:
    """Remove a folder at once: where the process is killed meanwhile, `tidy_folder` of `path` beside it removes the rest."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    folder.rename(aside / folder.name)
    shutil.rmtree(aside)


def tidy_folder(path: Path) -> None:
    """Undo what a process that was killed in `replaced_folder` left beside `path`, when no other one is in it.

    Raises:
        ArtifactError: it cannot be removed.
    """
    left = [
        item for item in path.parent.glob(f".{path.name}.*") if re.fullmatch(_MADE, item.name.removeprefix(f".{path.name}."))
    ]
    with changing(path):
        for item in sorted(left, reverse=True):
            if item.suffix == ".old" and not path.exists():
                item.rename(path)
            else:
                shutil.rmtree(item)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file beside `path` that takes its place when the block ends well.

    Raises:
        ArtifactError: it cannot be written.
    """
    if path.is_dir():
        raise ArtifactError(f"Expected the name of a file to write, got {path}, which is a folder. Name a file in it.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a killed process left, or a link that somebody laid there to have another file written in its place.
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # where its folder is a file, say, or can no longer be written
            partial.unlink()


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Make `folder` if it is not there and wait until no other process that calls this is using it.

    The system frees the folder when a process ends, however it ends. Whoever has it may delete it, as the last thing
    that is done with it: the next process makes another and goes on at once.

    Raises:
        ArtifactError: it cannot be made or locked.
    """
    try:
        descriptor = _locked(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield
    finally:
        # Closing is not enough: a process that was forked meanwhile has the lock open too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def refuse_foreign(path: Path, *, known_by: str) -> None:
    """Refuse to replace anything but an empty folder or one that holds a file `known_by`.

    Raises:
        ArtifactError: `path` is something else.
    """
    if path.exists() and not (path.is_dir() and ((path / known_by).exists() or not any(path.iterdir()))):
        raise ArtifactError(f"Expected {path} to be absent, empty, or of an earlier run, got something else. Name another.")


def write_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, with metadata if given.

    Raises:
        OSError: the file cannot be written; safetensors by itself has an error of its own for a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(_apart(tensors), file, metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error).rsplit(": ", 1)[-1], str(file)) from error


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest_310(stream)


def _digest_310(stream: Any) -> str:
    """Do what ``hashlib.file_digest`` does, which Python 3.10 lacks."""
    whole = hashlib.sha256()
    while part := stream.read(2**20):
        whole.update(part)
    return whole.hexdigest()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors contiguous and none sharing memory with another, as safetensors wants them."""
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        shares = any(tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in apart.values())
        apart[name] = tensor.contiguous().clone() if shares else tensor.contiguous()
    return apart


def _locked(folder: Path) -> int:
    """Return a descriptor of `folder` that holds its lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # Between any two calls here another process may delete the folder, and a third make another.
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, folder):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether `path` still names what was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _flush(item: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(item, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> ArtifactError:
    reason = error.strerror or str(error)
    where = f" ({error.filename})" if error.filename else ""
    return ArtifactError(f"Expected to write {path}, got: {reason}{where}. Free space or name another.")
