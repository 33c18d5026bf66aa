"""Lost processes: the timeout, and the error for a lost process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch import distributed as dist

from clip_negatives.errors import InputError, ProcessError

TIMEOUT_VARIABLE = "CLIP_NEGATIVES_TIMEOUT"  # environment variable: timeout in seconds
TIMEOUT = timedelta(days=1)  # default: one process may encode or cluster for hours while all others wait


@contextmanager
def lost_process_errors(missing: Callable[[], list[int]] = list) -> Iterator[None]:
    """Turn torch's error for a lost process into a `ProcessError`, which names the ranks that `missing` returns."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises a plain RuntimeError; its message has the path of a source file of gloo.
        if not (isinstance(error, dist.DistError) or "gloo/transport" in str(error)):
            raise
        ranks = missing()
        lost = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "a process"
        reason = re.sub(r"^\[[^]]*] ", "", str(error)).split(". ")[0].splitlines()[0][:200]
        hint = f" {TIMEOUT_VARIABLE} sets how many seconds to wait." if "Timed out" in reason else ""
        raise ProcessError(
            f"No answer from {lost} of the run ({reason}). Run the same command again: finished work is kept.{hint}"
        ) from error


def timeout() -> timedelta:
    """Return the timeout: ``CLIP_NEGATIVES_TIMEOUT`` seconds, or by default `TIMEOUT`."""
    text = os.environ.get(TIMEOUT_VARIABLE)
    with suppress(ValueError, OverflowError):
        limit = TIMEOUT if text is None else timedelta(seconds=float(text))
        if limit > timedelta(0):
            return limit
    raise InputError(f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, not {text!r}. Correct or unset it.")
