"""One process at a time writes an output, and another one learns who does."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from clip_negatives.errors import ArtifactError
from clip_negatives.storage import locks
from clip_negatives.storage.locks import sole_user

FORK = multiprocessing.get_context("fork")


def _use(output: Path, log: Path) -> None:
    with sole_user(output):
        with log.open("a") as stream:
            stream.write("in\n")
        (output / "file").touch(exist_ok=False)  # the previous process removed it
        (output / "file").unlink()
        with log.open("a") as stream:
            stream.write("out\n")


def test_one_process_at_a_time_uses_an_output(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    log = tmp_path / "log"
    users = [FORK.Process(target=_use, args=(tmp_path / "used", log)) for _ in range(6)]
    with sole_user(tmp_path / "used"), sole_user(tmp_path / "used"):  # again in the same process
        for user in users:
            user.start()
        time.sleep(0.3)
        assert not log.exists()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0] * 6
    assert log.read_text() == "in\nout\n" * 6
    assert {item.name for item in tmp_path.iterdir()} == {"used", "log"}


def _hold(output: Path, ready: Path) -> None:
    with sole_user(output):
        ready.touch()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> multiprocessing.process.BaseProcess:
    """Return a process that holds the lock of tmp_path / "out"."""
    process = FORK.Process(target=_hold, args=(tmp_path / "out", tmp_path / "ready"), daemon=True)
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    return process


def test_who_holds_it_is_said(
    tmp_path: Path,
    holder: multiprocessing.process.BaseProcess,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = rf"out is in use by process {holder.pid} on {re.escape(socket.gethostname())} since 20..-..-.. ..:..:..\S*\. "
    repair = r"If that process no longer runs, delete .*/\.out\.lock\."
    with (
        pytest.raises(ArtifactError, match=f"{words}Wait until it ends, or name another path. {repair}"),
        sole_user(tmp_path / "out", wait=False),
    ):
        pass
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    waiting = FORK.Process(target=_hold, args=(tmp_path / "out", tmp_path / "second"), daemon=True)
    with caplog.at_level(logging.WARNING):
        waiting.start()
        time.sleep(0.5)
        assert not (tmp_path / "second").exists()
        os.kill(holder.pid or 0, signal.SIGKILL)  # the lock of a killed process is taken over
        holder.join()
        while not (tmp_path / "second").exists():
            time.sleep(0.01)
    waiting.kill()
    waiting.join()


def test_waiting_is_said(tmp_path: Path, holder: multiprocessing.process.BaseProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    said: list[str] = []

    def warn(text: str) -> None:
        said.append(text)
        os.kill(holder.pid or 0, signal.SIGKILL)
        holder.join()

    monkeypatch.setattr(locks, "log", warn)
    with sole_user(tmp_path / "out"):
        pass
    assert re.match(rf"waiting, because .*out is in use by process {holder.pid} on ", said[0])
    assert len(said) == 1


def test_lock_of_another_machine_stays(tmp_path: Path) -> None:
    """Whether a process of another machine runs cannot be known here."""
    (tmp_path / ".out.lock").write_text("1\nanother-machine\n")
    with pytest.raises(ArtifactError, match="by process 1 on another-machine since"), sole_user(tmp_path / "out", wait=False):
        pass


def test_an_incomplete_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("77\nanother-mach")
    with sole_user(tmp_path / "out", wait=False):
        assert (tmp_path / ".out.lock").read_text().startswith(f"{os.getpid()}\n")
    assert not (tmp_path / ".out.lock").exists()
