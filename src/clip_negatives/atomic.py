"""Files and folders that appear under their name whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_negatives.errors import ArtifactError


@contextmanager
def replaced_folder(path: Path, *, known_by: str) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Args:
        path: the folder to make.
        known_by: name of a file that says that an existing folder is one of ours and may be replaced.

    Raises:
        ArtifactError: `path` is something else, or cannot be written.
    """
    if path.exists() and not (path.is_dir() and ((path / known_by).exists() or not any(path.iterdir()))):
        raise ArtifactError(f"Expected {path} to be absent, empty, or of an earlier run, got something else. Name another.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ArtifactError(f"Expected to write {path}, got {error.strerror or error}. Name another folder.") from error
    try:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                _flush(file)
        folder.chmod(0o755)  # mkdtemp gave it to this user alone
        old = folder.with_name(f"{folder.name}.old")
        if path.exists():
            path.rename(old)
        folder.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"Expected to write {path}, got {error.strerror or error}. Free space or name another.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file beside `path` that takes its place when the block ends well.

    Raises:
        ArtifactError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _flush(partial)
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(f"Expected to write {path}, got {error.strerror or error}. Free space or name another.") from error
    finally:
        partial.unlink(missing_ok=True)


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


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
