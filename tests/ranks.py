"""Processes of one run, as torchrun starts them, without the seconds that each takes to import torch."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from clip_negatives.cli import main
from clip_negatives.compare import run as compare_run
from clip_negatives.dataset import tables
from clip_negatives.distributed.child import end_with_parent

FORKS = multiprocessing.get_context("forkserver")

ROOT = Path(__file__).parents[1]
"""The folder of `tests`, which is not on the path by itself."""

PRELOADED = [
    *compare_run.PRELOADED,
    "tests.ranks",
    "clip_negatives.pipelines.prepare",
    "open_clip_train.main",
    "sklearn.decomposition",
    "sklearn.feature_extraction.text",
    "faiss",
]
"""Modules that the fork server imports once for all processes. A run of pytest has one server, whose first user sets them."""


def start(world_size: int, work: Callable[..., Any], *arguments: Any, log: Path) -> list[BaseProcess]:
    """Start processes that call `work` with these arguments; each writes what it says to a file of its own in `log`."""
    log.mkdir(parents=True, exist_ok=True)
    for rank in range(world_size):
        (log / str(rank)).touch()
    ports = free_ports(len(arguments))
    ranks = [
        FORKS.Process(target=_rank, args=(rank, world_size, ports, log, dict(os.environ), work, arguments))
        for rank in range(world_size)
    ]
    FORKS.set_forkserver_preload(PRELOADED)
    with mock.patch.object(sys, "path", [str(ROOT), *sys.path]):  # they get it; a server that others started knows no tests
        for process in ranks:
            process.start()
    return ranks


def run(world_size: int, work: Callable[..., Any], *arguments: Any, log: Path) -> list[str]:
    """Do so, wait until all are done, and return what each rank said."""
    ranks = start(world_size, work, *arguments, log=log)
    deadline = time.monotonic() + 120
    try:
        for process in ranks:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    said = [(log / str(rank)).read_text() for rank in range(world_size)]
    assert codes == [0] * world_size, said
    return said


def commands(*lines: Sequence[object]) -> None:
    """Run commands of ours one after the other, with parts of csv files that are small; say the exit code of each."""
    tables.ROWS = 16
    for line, port in zip(lines, os.environ["MASTER_PORTS"].split(), strict=True):
        os.environ["MASTER_PORT"] = port
        os.write(1, f"exit code {command(line)}\n".encode())


def command(line: Sequence[object]) -> int:
    """Run a command of ours and return its exit code."""
    try:
        return int(main([str(word) for word in line], standalone_mode=False) or 0)
    except SystemExit as end:
        return int(end.code or 0)


def _rank(
    rank: int,
    world_size: int,
    ports: list[str],
    log: Path,
    environment: dict[str, str],
    work: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    end_with_parent()
    said = os.open(log / str(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
    names |= {"MASTER_PORT": ports[0], "MASTER_PORTS": " ".join(ports)}
    os.environ.update(environment | {name: str(value) for name, value in names.items()})
    work(*arguments)


def free_ports(count: int) -> list[str]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in taken]
