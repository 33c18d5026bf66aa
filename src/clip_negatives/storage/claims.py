"""Claims of independent tasks: a small file says that a task works on a part, so that other tasks leave the part to it.

A claim is exclusive where the file system can create a file only if it is missing. Elsewhere, two tasks may do a part twice,
which is harmless: both write the same part. A task takes over claims of tasks that were killed:

* its own claim of an earlier start, unless the same task runs twice on this machine;
* a claim of a process that no longer runs on this machine;
* a claim without a renewal for `STALE` seconds, or whose time is as much ahead: a clock was wrong.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.paths import is_running
from clip_negatives.storage.safe_reading import parse_json
from clip_negatives.storage.task_folder import CLAIMS, TaskFolder

STALE = 900.0  # seconds without a renewal after which another task takes a part over
RENEWED = 60.0  # seconds between two renewals


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims of one task on the parts of a folder; `task` is a text such as ``3/100``."""

    folder: TaskFolder
    task: str

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Yield whether this task has the claim on a part, which is renewed during the block; False: another task works on it.

        The claim stays after the block, so that no other task repeats work that failed; `release` removes it.
        """
        if not self._take(name):
            yield False
            return
        ended = Event()
        thread = Thread(target=self._renew, args=(name, ended), daemon=True)
        thread.start()
        try:
            yield True
        finally:
            ended.set()
            thread.join()

    def release(self, name: str) -> None:
        """Remove the claim on a part."""
        self.folder.remove(_file(name))

    def _take(self, name: str) -> bool:
        if self._is_living(name):
            return False
        if self.folder.create(_file(name), self._content()):
            return True
        if self._is_living(name):  # another task was faster
            return False
        self.folder.write(_file(name), self._content())
        return True

    def _is_living(self, name: str) -> bool:
        """Return whether another task holds the claim and has renewed it lately."""
        try:
            claim = parse_json(self.folder.read(_file(name)) or b"")
            return bool(not self._is_free(claim) and abs(time.time() - claim["time"]) < STALE)
        except (ValueError, KeyError, TypeError):  # torn, or removed in the meantime
            return False

    def _is_free(self, claim: Mapping[str, Any]) -> bool:
        """Return whether a claim is this task's own, or of a process that no longer runs."""
        is_own = bool(claim["task"] == self.task)
        if claim["host"] != socket.gethostname():
            return is_own
        return not is_running(claim["process"]) or (is_own and claim["process"] == os.getpid())

    def _renew(self, name: str, ended: Event) -> None:
        while not ended.wait(RENEWED):
            with suppress(ArtifactError):  # the work matters more than its claim
                self.folder.write(_file(name), self._content())

    def _content(self) -> bytes:
        claim = {"task": self.task, "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        return json.dumps(claim).encode()


def _file(name: str) -> str:
    return f"{CLAIMS}/{name}.json"
