"""The file of results: one line of JSON for each case, written at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    """Return the rows of a file; a line that was cut off is left out."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _summary(figures: Row) -> str:
    """Return the numbers of a row, or what kept it from being measured."""
    texts = [f"{name}: {figures[name]}" for name in ("outcome", "cannot", "error") if name in figures]
    return ", ".join([*texts, *(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float))])


class Rows:
    """Rows of this run and of earlier files.

    Args:
        file: rows are appended here; its own rows count, too.
        earlier: files of earlier runs.
        since: time at which this run began, in seconds; a case that failed after it is not tried again.
    """

    def __init__(self, file: Path, earlier: Iterable[Path] = (), *, since: float = 0.0) -> None:
        self.file, self.since = file, since
        self.running_file = file.with_name("running.txt")
        self.latest = {row["key"]: row for path in (*earlier, file) for row in read(path)}

    def is_done(self, key: str) -> bool:
        """Return whether there is a row of this case without an error."""
        return "error" not in self.latest.get(key, {"error": "no row"})

    def has_failed(self, key: str) -> bool:
        """Return whether the latest row of this case has an error."""
        return "error" in self.latest.get(key, {})

    def failed_now(self, key: str) -> bool:
        """Return whether this case failed in this run."""
        return self.has_failed(key) and float(self.latest[key]["time"]) >= self.since

    def add(self, key: str, **figures: Any) -> None:
        """Append a row, print it, and wait until it is on the disk."""
        row = {"key": key, "time": time.time(), **figures}
        self.latest[key] = row
        with self.file.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # the last line was cut off
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{key}: {_summary(figures)}", flush=True)

    @contextmanager
    def running(self, key: str) -> Iterator[None]:
        """Name the case that runs in a file, from which `add_crash` learns it."""
        self.running_file.write_text(key)
        yield
        self.running_file.unlink()

    def add_crash(self, reason: str) -> bool:
        """Add an error row for the case in which a process ended; return whether there was one."""
        if not self.running_file.exists():
            return False
        self.add(self.running_file.read_text(), error=reason)
        self.running_file.unlink()
        return True
