"""Processes join, or an error message says why they cannot."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest

from clip_negatives.distributed import environment, torchrun
from clip_negatives.distributed.environment import reading_threads
from clip_negatives.distributed.failures import TIMEOUT_VARIABLE
from clip_negatives.distributed.torchrun import joined
from clip_negatives.errors import InputError, ProcessError
from tests.ranks import free_ports, run


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"WORLD_SIZE": "2"}, "but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "but MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "MASTER_PORT must be .*not 'x'"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE must be a whole number of at least 1, not 'two'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a whole number of at least 1, not ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number of at least 1, not '0'"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK must be a whole number of at least 0, not ''"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
    ],
)
def test_incomplete_environment(names: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match=f"{words}.*unset"), joined():
        pass


def test_process_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "START_TIMEOUT", timedelta(seconds=1))
    names = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match=r"No answer from a process of the run \(.*Run the same command again"), joined():
        pass


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_timeout_out_of_range(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    with pytest.raises(InputError, match=f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, not '{text}'"), joined():
        pass


def _refuse() -> None:
    raise InputError("Expected another share.")


def _join(*cases: str) -> None:
    for case, port in zip(cases, os.environ["MASTER_PORTS"].split(), strict=True):
        os.environ["MASTER_PORT"] = port
        try:
            with mock.patch.object(torchrun, "START_TIMEOUT", timedelta(seconds=3)), joined() as processes:
                if case == "refused":
                    processes.together(_refuse if processes.rank == 1 else lambda: None)
                time.sleep(4.5 if processes.rank == 0 else 0)
                os.write(1, f"total {sum(processes.gather(1.0))}\n".encode())
        except InputError as error:
            os.write(1, f"{error}\n".encode())
        except SystemExit as end:
            os.write(1, f"exit code {end.code}\n".encode())


def test_one_process_reports_an_error(tmp_path: Path) -> None:
    """And a process may take longer than they waited for each other to start."""
    zero, one, two = (text.splitlines() for text in run(3, _join, "refused", "slow", log=tmp_path))
    assert zero == two == ["exit code 2", "total 3.0"]
    assert one == ["Expected another share.", "total 3.0"]


@pytest.mark.parametrize(
    ("cpus", "processes", "threads"), [(16, None, 20), (16, "8", 6), (16, "64", 5), (128, "1", 32), (1, None, 5)]
)
def test_processes_of_a_machine_share_its_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: int, processes: str | None, threads: int
) -> None:
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda process: set(range(cpus)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert reading_threads() == threads
