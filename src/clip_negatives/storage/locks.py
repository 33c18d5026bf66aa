"""Locks: one process at a time writes an output.

A lock is a file beside the output, ``.NAME.lock``. It names the process and machine that hold the lock, and works on network
disks too. If the process ran on this machine and ended without releasing the lock, the next process takes the lock over. If it
ran on another machine, the user must delete the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import SoftFileLock, Timeout

from clip_negatives.errors import ArtifactError
from clip_negatives.printing import log
from clip_negatives.storage.atomic import writing

PATIENCE = 5.0  # seconds to wait before a log line or an error; filelock needs 2 to take over an incomplete file


@contextmanager
def sole_user(output: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock an output during the block. Only one process holds the lock; it may lock the output again inside the block.

    Args:
        output: the file or folder; a missing parent folder is created.
        wait: what to do if another process still holds the lock after `PATIENCE` seconds: log it and wait on, or raise.

    Raises:
        ArtifactError: another process holds the lock and `wait` is false, or the lock file cannot be written.
    """
    file = output.with_name(f".{output.name}.lock")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = SoftFileLock(file, is_singleton=True, thread_local=False)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            if not wait:
                raise ArtifactError(
                    f"{output} {_holder(file)} Wait until it ends, or name another path. {_repair(file)}"
                ) from error
            log(f"waiting, because {output} {_holder(file)} {_repair(file)}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _holder(file: Path) -> str:
    """Return the end of a sentence that says which process and machine hold a lock, and since when."""
    try:
        process, machine, *_ = file.read_text().splitlines()
        since = datetime.fromtimestamp(file.stat().st_mtime).astimezone().isoformat(sep=" ", timespec="seconds")
    except (OSError, ValueError):  # the lock was just released
        return "was in use by another process."
    return f"is in use by process {process} on {machine} since {since}."


def _repair(file: Path) -> str:
    return f"If that process no longer runs, delete {file}."
