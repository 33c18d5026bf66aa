"""Processes with a time limit, whose output is printed and kept."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from gpu.exit_codes import CASES_LEFT, DEVICE_LOST, FAILED, FINISHED
from gpu.rows import Rows

RESTARTS = 8
GRACE = 30.0  # seconds beyond its limit after which a case that hangs is ended


def run_logged(command: Sequence[str], environment: dict[str, str], log: Path, seconds: float, cwd: Path) -> int | None:
    """Run a process; return its exit code, or None if it was ended at the time limit."""
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    process = subprocess.Popen(command, env=environment, cwd=cwd, stdout=pipe, stderr=out, text=True)
    reader = threading.Thread(target=_copy_lines, args=(process.stdout, log), daemon=True)
    reader.start()
    try:
        return process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()  # does nothing if it has ended
        process.wait()
        reader.join(5)


def run_measurements(
    command: Sequence[str], environment: dict[str, str], log: Path, seconds: float, cwd: Path, rows: Rows
) -> int:
    """Run the measuring process; start it again where it crashed, hung or lost the device, and return the exit code.

    The case that ended a process gets an error row, and is not tried again in this run.
    """
    end = time.monotonic() + seconds
    for _ in range(RESTARTS + 1):
        left = end - time.monotonic()
        code = run_logged([*command, "--seconds", f"{left:.0f}"], environment, log, left + GRACE, cwd)
        if code in (FINISHED, FAILED, CASES_LEFT):
            return code
        reason = "it did not end in time" if code is None else f"the process ended with exit code {code}"
        known = code == DEVICE_LOST or rows.add_crash(reason)  # the case that lost the device has its row already
        if code is None or not known:
            break
    return FAILED


def _copy_lines(stream: IO[str] | None, log: Path) -> None:
    with log.open("a") as file:
        for line in stream or ():
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
