"""Signs of life of the processes of a run: each gives them again and again, and one that falls silent is named.

A process that ends closes its connections, which the others see at once. One that is stopped, or whose machine is gone, closes
nothing, and those that wait for it would wait until gloo's or NCCL's own patience ends, without a name. Long work is no
silence: the signs come from a thread beside it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from torch.distributed.rendezvous import rendezvous

from clip_negatives.errors import InputError, ProcessError

VARIABLE = "CLIP_NEGATIVES_TIMEOUT"
"""Environment variable: seconds of silence after which a process counts as lost."""

SILENCE = timedelta(minutes=10)
"""That, where the variable is not set."""

MEETING = timedelta(seconds=30)
"""How long to wait at least for the others to watch too, who met a moment before."""

LOOKS = 20
"""How often the others are looked at in that time; looks are counted, so that a run that is suspended as a whole goes on."""

FAREWELL = "gone"
"""The last sign of a process that leaves the run."""


@contextmanager
def watched(rank: int, world_size: int) -> Iterator[None]:
    """Give signs of life while the block runs, and end this process with exit code 2 where the next rank gives none.

    One sentence on stderr names the rank, its machine and its process. It is the end of the whole process, as with the watchdog
    of NCCL: the main thread waits in a call of gloo or NCCL that nothing else ends. torchrun then ends the others.

    Args:
        rank: of this process.
        world_size: processes of the run, all of which met before. Where that was not by the environment variables of torchrun,
            nothing is watched.

    Raises:
        InputError: the variable `CLIP_NEGATIVES_TIMEOUT` is no number of seconds.
        ProcessError: another process has ended before.
    """
    silence = _silence()
    if world_size == 1 or "MASTER_ADDR" not in os.environ:
        yield
        return
    try:
        # A store of its own: another one waits while one of its calls waits.
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=max(silence, MEETING)))
    except RuntimeError as error:
        raise ProcessError(
            "Expected every process of the run to go on, got one that was gone before its first sign of life. Run the same "
            "command again: what is finished is kept."
        ) from error
    pulse = _Pulse(store, rank, (rank + 1) % world_size, silence)
    beating, watching = (threading.Thread(target=work, daemon=True) for work in (pulse.beat, pulse.watch))
    beating.start()
    watching.start()
    try:
        yield
    finally:
        pulse.leave(beating)


class _Pulse:
    """Give signs of life in a store and look for those of another process."""

    def __init__(self, store: Any, rank: int, other: int, silence: timedelta) -> None:
        self._store, self._rank, self._other, self._silence = store, rank, other, silence
        self._pause = silence.total_seconds() / LOOKS
        self._left = threading.Event()
        self._beats, self._sign = 0, ""

    def beat(self) -> None:
        """Give a sign and take that of the other, again and again, until this process leaves."""
        who = f"{socket.gethostname()}, process {os.getpid()}"
        while not self._left.wait(self._pause):
            try:
                self._store.set(_key(self._rank), f"{self._beats};{who}")
                if self._store.check([_key(self._other)]):
                    self._sign = self._store.get(_key(self._other)).decode()
            except RuntimeError:  # the store is closed, with the run: whoever waits for another hears of it
                self._left.set()
            self._beats += 1

    def watch(self) -> None:
        """Look whether the store answers and whether the sign is another than before, and end this process where it is not."""
        before, quiet = (-1, ""), [0, 0]
        while not self._left.wait(self._pause):
            now = self._beats, self._sign
            quiet = [count + 1 if one == other else 0 for count, one, other in zip(quiet, now, before, strict=True)]
            before = now
            if quiet[0] >= LOOKS:
                self._end(0, f"{os.environ['MASTER_ADDR']}, which keeps the store of the run")
            elif quiet[1] >= LOOKS and self._sign != FAREWELL:
                self._end(self._other, self._sign.partition(";")[2] or "no sign at all")

    def leave(self, beating: threading.Thread) -> None:
        """Tell the others that this process leaves as it should, after its last sign."""
        self._left.set()
        beating.join(self._pause)
        with suppress(RuntimeError):  # the store may have left before
            self._store.set(_key(self._rank), FAREWELL)

    def _end(self, rank: int, who: str) -> None:
        if self._left.is_set():
            return
        sys.stderr.write(
            f"Error: Expected every process of the run to go on, got no sign of life of rank {rank} ({who}) for "
            f"{self._silence.total_seconds():g} seconds: it is stopped, or its machine is gone. Run the same command again, "
            f"without that machine: what is finished is kept. {VARIABLE} sets the seconds.\n"
        )
        sys.stderr.flush()
        os._exit(2)


def _key(rank: int) -> str:
    return f"clip_negatives/pulse/{rank}"


def _silence() -> timedelta:
    given = os.environ.get(VARIABLE)
    try:
        silence = SILENCE if given is None else timedelta(seconds=float(given))
    except (ValueError, OverflowError):
        silence = timedelta(0)
    if silence <= timedelta(0):
        raise InputError(f"Expected seconds, more than 0, in {VARIABLE}, got {given!r}. Set it to such a number, or unset it.")
    return silence
