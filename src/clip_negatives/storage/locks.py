"""Locks: one process at a time writes an output.

A lock is a file beside the output, ``.NAME.lock``, with the process and machine that hold it. It also works on network disks.
The lock of a process that ended on this machine is taken over. A lock of another machine stays until that process ends, or a
user deletes the file.
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

PATIENCE = 5.0  # seconds until a process says that it waits, or gives up; filelock needs 2 to take over an incomplete file


@contextmanager
def sole_user(output: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time into the block of an output; a process may enter it again within the block.

    Args:
        output: the file or folder; its parent is made if it is missing.
        wait: wait for another process, and say so after `PATIENCE` seconds; otherwise raise then.

    Raises:
        ArtifactError: another process is in the block, or the lock cannot be written.
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
    """Return who holds a lock, from its file: the process, the machine, and the time when it began to be held."""
    try:
        process, machine, *_ = file.read_text().splitlines()
        since = datetime.fromtimestamp(file.stat().st_mtime).astimezone().isoformat(sep=" ", timespec="seconds")
    except (OSError, ValueError):  # just released
        return "was in use by another process."
    return f"is in use by process {process} on {machine} since {since}."


def _repair(file: Path) -> str:
    return f"If that process no longer runs, delete {file}."
