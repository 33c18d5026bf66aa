"""Helpers for writing files: error messages, safetensors, digests and flushing to the disk."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clip_negatives.advice import remedies
from clip_negatives.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into an ArtifactError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = str(error.strerror or error) + (f" ({error.filename})" if error.filename else "")
        raise ArtifactError(f"{path} cannot be written: {reason}. {remedies(error, 'name another path')}") from error


def write_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; raise OSError, for example if the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    separate: dict[str, Tensor] = {}  # safetensors rejects tensors that share memory
    for name, tensor in tensors.items():
        used_memory = {earlier.untyped_storage().data_ptr() for earlier in separate.values()}
        is_shared = tensor.untyped_storage().data_ptr() in used_memory
        separate[name] = tensor.contiguous().clone() if is_shared else tensor.contiguous()
    file.touch()
    mode = file.stat().st_mode  # save_file ignores the umask: only the user could read the file
    try:
        save_file(separate, file, metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error).rsplit(": ", 1)[-1], str(file)) from error
    file.chmod(mode)


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def flush(item: Path) -> None:
    """Wait until a file or folder is on the disk (fsync)."""
    descriptor = os.open(item, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
