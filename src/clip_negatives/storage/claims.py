"""Claims of independent tasks: a small file says that a task works on a part, so that other tasks leave the part to it.

A claim is exclusive where the file system can create a file only if it is missing. Elsewhere, two tasks may do a part twice,
which is harmless: both write the same part. A task takes over its own claim of an earlier start, and a claim without a renewal
for `STALE` seconds, whose task was killed. So is a claim whose time is `STALE` seconds or more ahead: a clock was wrong.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread

from clip_negatives.errors import ArtifactError
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
        """Remove the claim on a part that is complete."""
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
            return bool(claim["task"] != self.task and abs(time.time() - claim["time"]) < STALE)
        except (ValueError, KeyError, TypeError):  # torn, or removed in the meantime
            return False

    def _renew(self, name: str, ended: Event) -> None:
        while not ended.wait(RENEWED):
            with suppress(ArtifactError):  # the work matters more than its claim
                self.folder.write(_file(name), self._content())

    def _content(self) -> bytes:
        return json.dumps({"task": self.task, "host": socket.gethostname(), "time": time.time()}).encode()


def _file(name: str) -> str:
    return f"{CLAIMS}/{name}.json"
