"""What stops a command from outside: signals, disks, clocks, processes of the run that are lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cases import Case, LostError, check_error, check_stopped
from launches import Ended
from ranks import launched, wait_until_met

SECONDS = 2
"""Of silence after which a rank is lost."""

FREE = 2**30
"""Bytes of a disk with room enough."""


def stop(case: Case, number: int) -> None:
    """Stop the command by a signal, and go on."""
    case.lay_out_earlier()
    ended = case.interrupt(number)
    if case.subject.command == "compare" and ended.code == 2:
        check_error(ended, "its process ended")  # it was a run that was stopped
    else:
        check_stopped(ended, number)
    case.check_between()
    case.go_on()


def fill(case: Case) -> None:
    """Let the disk be too small, and go on once it is larger."""
    needed = case.known.bytes + case.chance.choice((0, case.subject.passing))
    size = case.chance.randrange(4096, int(1.2 * needed) + 8192)
    with disk(case.folder, size) as resize:
        ended = case.run(setup=() if resize else (partial(_limit_files, case.chance.randrange(size)),))
        _refused_or_done(case, ended)
        if resize:
            resize("size", FREE)
        case.go_on()


def forbid(case: Case) -> None:
    """Let the folder be one that cannot be written, before anything or after some is there, and go on once it can."""
    with disk(case.folder, FREE) as resize:
        case.lay_out_earlier()
        if case.chance.random() < 0.5:
            case.interrupt(signal.SIGKILL)
        _forbid(case.folder, resize, forbidden=True)
        ended = case.run()
        _forbid(case.folder, resize, forbidden=False)
        _refused_or_done(case, ended)
        case.go_on()


def set_clock_back(case: Case) -> None:
    """Let the clock jump back by a day while the command runs, and stay there when it is killed and goes on."""
    jump = Clock(case.chance.uniform(0, case.known.seconds["forked"]))
    if case.chance.random() < 0.5:
        ended = case.run(setup=(jump,))
        if ended.code != 0:
            raise LostError(f"ended with {ended.code}: {ended.said[-600:]}")
    else:
        case.interrupt(signal.SIGKILL)
    case.check_between()
    case.go_on(setup=(Clock(0),))


def lose_rank(case: Case, number: int) -> None:
    """Let one of two processes die, or stop without an end; the other says so in time, and one process goes on."""
    case.world_size = 2
    ranks = launched(case.line, case.folder, environment={"CLIP_NEGATIVES_TIMEOUT": SECONDS})
    wait_until_met(ranks, case.folder)
    victim = case.chance.randrange(2)
    ranks[victim].wait_for(case.chance.uniform(0, case.known.seconds["forked"]))
    ranks[victim].signal(number)
    ended = ranks[1 - victim].finish(60)
    for rank in ranks:
        rank.end()
    if ended.code != 0:
        check_error(ended, *([f"no sign of life of rank {victim}"] if number == signal.SIGSTOP else []))
    case.check_between()
    case.world_size = 2 if case.subject.command == "train" else case.chance.choice((1, 2))
    case.go_on()


def _refused_or_done(case: Case, ended: Ended) -> None:
    """Make sure that a command had room enough, or said in a sentence that it had not."""
    if ended.code != 0:
        check_error(ended)
    case.check_between()


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[str, object], None] | None]:
    """Give `folder` a disk of its own of so many bytes, and a function that changes its options; None where it cannot be.

    It can where this is root in a machine that may mount.
    """
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        yield None
        return
    try:
        yield lambda name, value: _remount(folder, f"{name}={value}" if value is not None else name)
    finally:
        for _ in range(50):
            if not subprocess.run(["umount", folder], capture_output=True, check=False).returncode:
                break
            time.sleep(0.1)


def can_mount(scratch: Path) -> bool:
    """Tell whether a folder can have a disk of its own here."""
    folder = scratch / "mounted"
    folder.mkdir()
    with disk(folder, 4096) as resize:
        return resize is not None


def _remount(folder: Path, options: str) -> None:
    for _ in range(100):  # what a killed process had open may still be closing
        if not subprocess.run(["mount", "-o", f"remount,{options}", folder], capture_output=True, check=False).returncode:
            return
        time.sleep(0.1)
    raise LostError(f"a disk could not be remounted with {options}: something still writes there")


def _forbid(folder: Path, resize: Callable[[str, object], None] | None, *, forbidden: bool) -> None:
    """Let a folder be read-only, by its disk or, where it has none of its own, by its permissions."""
    if resize is not None:
        resize("ro" if forbidden else "rw", None)
    else:
        folder.chmod(0o555 if forbidden else 0o755)


def _limit_files(size: int) -> None:
    """Let no file be larger: what a disk without room is where none can be mounted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@dataclass(frozen=True, slots=True)
class Clock:
    """Set the clock of a process back by a day after some seconds; files that get their name later have times of that day.

    Attributes:
        seconds: after which.
    """

    seconds: float

    def __call__(self) -> None:
        """Begin to count the seconds."""
        real, began, back = time.time, time.monotonic(), 86_400.0

        def told() -> float:
            return real() - (back if time.monotonic() - began >= self.seconds else 0)

        def stamped(move: Callable[..., None]) -> Callable[..., None]:
            def moved(source: str, target: str, **named: object) -> None:
                move(source, target, **named)
                os.utime(target, (told(), told()))

            return moved

        time.time, os.rename, os.replace = told, stamped(os.rename), stamped(os.replace)
