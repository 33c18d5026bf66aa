"""Processes meet, or say in one sentence why they cannot."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from clip_negatives import processes
from clip_negatives.errors import ProcessError
from clip_negatives.processes import is_loss, joined, reporting_loss

from .ranks import free_ports, start


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"WORLD_SIZE": "2"}, "variable RANK expected"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "variable MASTER_ADDR expected"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "variable MASTER_PORT expected"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "'two'"),
    ],
)
def test_environment_that_is_not_torchruns(names: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match=f"Expected the environment variables that torchrun sets.*{words}.*unset"), joined():
        pass


def test_process_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ARRIVAL", timedelta(seconds=1))
    names = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match=r"one that is gone \(.*Run the same command again"), joined():
        pass


def _lose(ready: Path) -> None:
    """Reduce, as training does, with a process that is killed."""
    with joined() as found:
        found.gather((ready / str(found.rank)).touch())
        if found.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:
            os.write(1, f"{is_loss(error)}".encode())


def test_loss_of_a_process_is_told_from_other_errors(tmp_path: Path) -> None:
    """Errors of gloo have no class of their own."""
    ranks = start(2, _lose, tmp_path, log=tmp_path / "log")
    for process in ranks:
        process.join(60)
        process.kill()
    assert (tmp_path / "log" / "0").read_text() == "True"
    assert not is_loss(RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"))
    with pytest.raises(RuntimeError, match=r"^out of memory$"), reporting_loss(is_loss):
        raise RuntimeError("out of memory")
    with pytest.raises(ProcessError, match=r"one that is gone \(store\)"), reporting_loss(is_loss):
        raise dist.DistStoreError("store")
