"""Start a command of ours so that it can be disturbed: forked from a process that has imported all, or as a whole one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")

PRELOADED = [
    "launches",
    "clip_negatives.prepare",
    "clip_negatives.generate",
    "clip_negatives.compare",
    "clip_negatives.compare.evaluate",
    "clip_negatives.integrations.open_clip.seam",
    "clip_negatives.report",
    "matplotlib.backends.backend_agg",
    "sklearn.decomposition",
    "sklearn.feature_extraction.text",
    "faiss",
    "pandas",
]
"""Imported once, by the process that commands are forked from."""

LIMIT = 600.0
"""Seconds after which a command counts as hanging."""

Setup = Callable[[], None]
"""Is called in the process of a command before it begins; can be pickled."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Say how a command ended: exit code (minus the signal that ended it, None where it hung), what it said, and seconds."""

    code: int | None
    said: str
    seconds: float


class Running:
    """Hold a command that runs, alone in a process group.

    Args:
        line: the command line, without the name of the program.
        folder: working directory; what it says is kept beside it (`beside`), as the folder may have no room.
        environment: more variables.
        setup: called before it begins; a whole process takes none.
        whole: start a process that imports everything, as a shell does.
    """

    def __init__(
        self,
        line: Sequence[object],
        folder: Path,
        *,
        environment: Mapping[str, object] | None = None,
        setup: Sequence[Setup] = (),
        whole: bool = False,
    ) -> None:
        words, more = [str(word) for word in line], {name: str(value) for name, value in (environment or {}).items()}
        more = {"CLIP_NEGATIVES_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **more}
        self.log = beside(folder) / f"{time.monotonic_ns()}"
        self.began = time.monotonic()
        if whole:
            with self.log.open("wb") as log:
                self._whole = subprocess.Popen(
                    [sys.executable, "-m", "clip_negatives", *words],
                    cwd=folder,
                    env={**os.environ, **more},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.pid = self._whole.pid
        else:
            self._forked = FORKS.Process(target=_command, args=(words, folder, self.log, more, tuple(setup)))
            self._forked.start()
            self.pid = self._forked.pid or 0
        self.whole = whole

    def wait_until_begun(self) -> None:
        """Wait until a forked command begins, which is of no interest before."""
        while not self.whole and self.alive() and not self.log.with_suffix(".begun").exists():
            time.sleep(0.002)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to its group as a terminal does."""
        try:
            (os.killpg if group else os.kill)(self.pid, number)
        except ProcessLookupError:
            return  # it has ended

    def alive(self) -> bool:
        """Tell whether it still runs."""
        return self._whole.poll() is None if self.whole else self._forked.is_alive()

    def wait_for(self, seconds: float) -> None:
        """Wait so long, or until it ends."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(0.002)

    def finish(self, limit: float = LIMIT) -> Ended:
        """Wait until it ends, and end it where that takes too long."""
        self.wait_for(limit)
        code = None if self.alive() else self._whole.returncode if self.whole else self._forked.exitcode
        seconds = time.monotonic() - self.began
        if code is None:
            self.end()
        return Ended(code, self.log.read_text(errors="replace") if self.log.exists() else "", seconds)

    def wait(self, limit: float = LIMIT) -> Ended:
        """Do so, and end what its group leaves behind."""
        ended = self.finish(limit)
        self.end()
        return ended

    def end(self) -> None:
        """End what is left of it."""
        self.signal(signal.SIGKILL, group=True)
        if self.whole:
            self._whole.wait()
        else:
            self._forked.kill()
            self._forked.join()

    def left_behind(self, patience: float = 30.0) -> bool:
        """Tell whether processes of its group go on though it has ended."""
        end = time.monotonic() + patience
        while found := _in_group(self.pid):
            if time.monotonic() > end:
                return bool(found)
            time.sleep(0.05)
        return False


def _in_group(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(status.parent.name))
    return found


def _command(words: list[str], folder: Path, log: Path, environment: dict[str, str], setup: tuple[Setup, ...]) -> None:
    """Be the process of a command; what would fork from a server of its own forks from this one."""
    os.setpgid(0, 0)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    os.chdir(folder)
    os.environ.update(environment)
    from clip_negatives import generate
    from clip_negatives.cli import main
    from clip_negatives.dataset import csv

    csv.ROWS = generate.ROWS = 16  # several parts of few samples
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment,misc,return-value]
    for one in setup:
        one()
    log.with_suffix(".begun").touch()
    main(words)


def beside(folder: Path) -> Path:
    """Return the folder beside another for what is kept about it."""
    kept = folder.with_name(f"{folder.name}.kept")
    kept.mkdir(exist_ok=True)
    return kept
