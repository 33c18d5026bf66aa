"""Processes meet, or say in one sentence why they cannot."""

from __future__ import annotations

from datetime import timedelta

import pytest

from clip_negatives import processes
from clip_negatives.errors import ProcessError
from clip_negatives.processes import joined

from .ranks import free_ports


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
