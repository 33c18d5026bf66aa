"""Run a command in a process that dies, or finds the disk full, at its n-th write.

An audit hook counts the writes. A limit on the size of files makes the kernel stop a write in the middle.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ["clip_negatives.integrations.open_clip.seam", "clip_negatives.report", "faiss", "matplotlib.backends.backend_agg"]
PRELOADED += ["sklearn.cluster", "sklearn.feature_extraction.text", "torch.utils.tensorboard"]
FORKS.set_forkserver_preload(["kills", *PRELOADED])  # a command that is forked does not import these again

ENDS = ("before the write", "in the middle of the write", "disk full")
KILLED = 137  # exit code of a process that ended before a write
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def _count_writes(log: Path, at: int, end: str, room: int) -> None:
    """Count the writes of this process, log them if `at` is 0, else end the process at that write."""
    stream, count = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        flags = arguments[2] if event == "open" and isinstance(arguments[0], str) else 0
        if event not in CHANGES and not (flags or 0) & WRITES:
            return
        count += 1
        if at == 0:
            os.write(stream, f"{event} {arguments[event == 'os.rename']}\n".encode())
        elif count == at and end == ENDS[0]:
            os._exit(KILLED)
        elif count == at:  # the default action of the signal kills the process
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if end == ENDS[1] else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    sys.addaudithook(hook)


def numbers(log: Path) -> list[int]:
    """Return the number of the first write of each kind: names of one kind differ in digits or random letters only."""
    first: dict[str, int] = {}
    for number, line in enumerate(log.read_text().splitlines(), start=1):
        first.setdefault(re.sub(r"\d+|\b[a-z0-9_]{8}\b|[0-9a-f]{12,}", "?", line), number)
    return sorted(first.values())


def run(line: str, folder: Path, at: int = 0, end: str = "", room: int = 0) -> tuple[int, str]:
    """Run a command line of clip-negatives in a folder; return its exit code and what it printed."""
    reader, writer = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_command, args=(line, folder, at, end, room, writer))
    process.start()
    writer.close()
    with os.fdopen(reader.fileno(), errors="replace", closefd=False) as printed:
        text = printed.read()
    process.join()
    return process.exitcode or 0, text


def _command(line: str, folder: Path, at: int, end: str, room: int, output: Connection) -> None:
    """Run a command in this process, in parts of 16 samples; its own processes are forked, which is faster."""
    torch.set_num_threads(1)  # a fork of a process with OpenMP threads may hang
    os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2), output.close()
    os.chdir(folder)
    os.environ["CLIP_NEGATIVES_CACHE"] = str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from clip_negatives.cli import main
    from clip_negatives.dataset import tables
    from clip_negatives.pipelines import generate

    tables.ROWS = generate.ROWS = 16
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment,misc,return-value]
    _count_writes(folder.with_suffix(".writes"), at, end, room)
    main(line.split())
