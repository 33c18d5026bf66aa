"""A process that falls silent is named by the others, long work is not silence, and whoever leaves says so."""

from __future__ import annotations

import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest

from clip_negatives import pulse
from clip_negatives.errors import InputError, ProcessError
from clip_negatives.processes import joined
from clip_negatives.pulse import VARIABLE, watched

from .ranks import run, start

SILENCE = 1.5


def _wait(order: Path) -> None:
    """Wait for the other process in a call of gloo, after work that is longer than the silence that is allowed."""
    os.environ[VARIABLE] = str(SILENCE)
    with joined() as processes:
        end = time.monotonic() + 2 * SILENCE
        while time.monotonic() < end:
            pass
        (order / f"worked-{processes.rank}").touch()
        if processes.rank == 1:
            time.sleep(60 if (order / "stall").exists() else 0)
        processes.gather(0)
    time.sleep(2 * SILENCE if processes.rank == 0 else 0)  # the other one has left meanwhile
    os.write(1, b"done\n")


def test_long_work_is_no_silence(tmp_path: Path) -> None:
    assert run(2, _wait, tmp_path, log=tmp_path / "log") == ["done\n", "done\n"]


def _outlast(_: Path) -> None:
    """Stay longer than the silence that is allowed after another process has left."""
    os.environ[VARIABLE] = str(SILENCE)
    with joined() as processes:
        time.sleep(2 * SILENCE if processes.rank < 2 else 0)
    os.write(1, b"done\n")


def test_process_that_leaves_is_not_silent(tmp_path: Path) -> None:
    """Nor is the one that watched it."""
    assert run(3, _outlast, tmp_path, log=tmp_path / "log") == ["done\n"] * 3


@pytest.mark.parametrize("stopped", [0, 1])
def test_process_that_is_stopped_is_named(tmp_path: Path, stopped: int) -> None:
    """Rank 0 keeps the store by which they tell each other that they are alive."""
    (tmp_path / "stall").touch()
    ranks = start(2, _wait, tmp_path, log=tmp_path / "log")
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("worked-*"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(ranks[stopped].pid or 0, signal.SIGSTOP)
    ranks[1 - stopped].join(30)
    code = ranks[1 - stopped].exitcode
    for process in ranks:
        process.kill()
        process.join()
    said = (tmp_path / "log" / str(1 - stopped)).read_text()
    assert code == 2, said
    assert f"got no sign of life of rank {stopped} (" in said
    assert f"for {SILENCE:g} seconds" in said
    assert "Run the same command again" in said
    assert "done" not in said


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf"])
def test_seconds_that_are_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(InputError, match=f"Expected seconds, more than 0, in {VARIABLE}, got '{given}'"), watched(0, 1):
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_process_that_is_gone_before_it_is_watched(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would look for it for half an hour."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, VARIABLE: 0.5}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(pulse, "MEETING", timedelta(seconds=1))
    with pytest.raises(ProcessError, match="gone before its first sign of life"), watched(rank, 2):
        pass


def test_alone_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "rendezvous", None)
    with watched(0, 1):
        pass
