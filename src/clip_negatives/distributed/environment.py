"""Checks of the environment variables that a launcher of several processes, such as torchrun, sets."""

from __future__ import annotations

import os

from clip_negatives.errors import ProcessError

MAX_THREADS = 32  # as in Python's `ThreadPoolExecutor`
REPAIR = "Start the processes with torchrun, or unset WORLD_SIZE."


def started_processes() -> int:
    """Return ``WORLD_SIZE``, the number of processes that a launcher started; 1 without this variable.

    Raises:
        ProcessError: ``WORLD_SIZE``, ``RANK`` or ``LOCAL_RANK`` is not a whole number within its range.
    """
    number = _number("WORLD_SIZE", 1) or 1
    for name in ("RANK", "LOCAL_RANK"):
        rank = _number(name, 0)
        if rank is not None and number > 1 and rank >= number:
            raise ProcessError(f"{name} is {rank}, but WORLD_SIZE is {number}. {REPAIR}")
    return number


def reading_threads() -> int:
    """Return how many threads read and decode: as many as `ThreadPoolExecutor` has for this process's share of the CPUs.

    The processes that torchrun starts on a machine share its CPUs.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, max(1, cpus // (_number("LOCAL_WORLD_SIZE", 1) or 1)) + 4)


def check_address(*names: str) -> None:
    """Raise ProcessError if a variable in `names`, or of the address of the first process, is not set or invalid."""
    if missing := next((name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)), None):
        raise ProcessError(f"The run has several processes, but {missing} is not set. {REPAIR}")
    if (_number("MASTER_PORT", 0) or 0) > 65_535:
        raise ProcessError(f"MASTER_PORT is {os.environ['MASTER_PORT']}, above the highest port 65535. {REPAIR}")


def _number(name: str, least: int) -> int | None:
    """Return the whole number in a variable, or None if it is not set; ProcessError if it is invalid."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise ProcessError(f"{name} must be a whole number of at least {least}, not {text!r}. Correct it, or unset it.")
    return int(text)
