"""Processes share work and errors, and name a process that is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import distributed as dist

from clip_negatives.distributed.failures import TIMEOUT_VARIABLE, lost_process_errors
from clip_negatives.distributed.gather import gather_rows
from clip_negatives.distributed.processes import ALONE, HaltedError, Processes
from clip_negatives.distributed.torchrun import joined
from clip_negatives.errors import ClipNegativesError, InputError, ProcessError
from tests.ranks import run, start


def _check_results(processes: Processes) -> None:
    rank, world = processes.rank, processes.world_size
    assert processes.gather(rank) == list(range(world))
    assert processes.divided(lambda number: number * 2, range(7)) == [0, 2, 4, 6, 8, 10, 12]
    assert processes.first(lambda: f"of {rank}") == "of 0"
    assert processes.together(lambda: rank) == rank
    rows = torch.arange(7.0)[:, None]
    assert torch.equal(gather_rows(rows[rank::world], 7), rows)


def _share_work(_: Path) -> None:
    with joined() as processes:
        assert Processes.current() is processes
        _check_results(processes)
    dist.init_process_group("gloo", init_method="env://")
    with mock.patch.object(dist, "get_backend", return_value="nccl"):  # which cannot send tensors of a CPU
        processes = Processes.current()
        assert Processes.current() is processes
    assert processes.group is not None
    _check_results(processes)
    dist.destroy_process_group()
    os.write(1, b"done")


def test_work_is_shared(tmp_path: Path) -> None:
    assert run(3, _share_work, tmp_path, log=tmp_path / "log") == ["done"] * 3


def test_single_process() -> None:
    assert Processes.current() is ALONE
    _check_results(ALONE)


def _raising(error: Exception | None) -> Callable[[], None]:
    def make() -> None:
        if error is not None:
            raise error

    return make


def _error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (ClipNegativesError, OSError) as error:
        return f"{type(error).__name__} {error} {getattr(error, 'rank', None)}"
    return "none"


def _fail(_: Path) -> None:
    """Report the error of each call."""
    with joined() as processes:
        for errors in [HaltedError("halted"), InputError("ours"), None], [OSError("foreign"), None, InputError("later")]:
            make = _raising(errors[processes.rank])
            os.write(1, f"{_error_of(partial(processes.together, make))}\n".encode())
        os.write(1, f"{_error_of(lambda: processes.first(_raising(InputError('first'))))}\n".encode())


def test_an_error_is_raised_on_all_processes(tmp_path: Path) -> None:
    zero, one, two = (text.splitlines() for text in run(3, _fail, tmp_path, log=tmp_path / "log"))
    assert zero == ["InputError ours 1", "OSError foreign None", "InputError first 0"]
    failed = "ProcessError Process 0 failed with OSError('foreign'). See its traceback. 0"
    assert one == two == ["InputError ours 1", failed, "InputError first 0"]


def _lose(ready: Path) -> None:
    """Wait for a process that is killed or stopped."""
    os.environ.update(json.loads((ready / "environment").read_text()))
    with joined() as processes:
        processes.gather((ready / str(processes.rank)).touch())
        if processes.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP if TIMEOUT_VARIABLE in os.environ else signal.SIGKILL)
        try:
            processes.gather(0)
        except ProcessError as error:
            os.write(1, f"{error}".encode())


@pytest.mark.parametrize("by_torchrun", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_lost_process_is_named(tmp_path: Path, stopped: bool, by_torchrun: bool) -> None:
    environment = {TIMEOUT_VARIABLE: "2"} if stopped else {}
    if by_torchrun:  # its agent, another process than the ranks, keeps the store
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
    (tmp_path / "environment").write_text(json.dumps(environment))
    ranks = start(3, _lose, tmp_path, log=tmp_path / "log")
    for rank in (0, 2):
        ranks[rank].join(60)
    for process in ranks:
        process.kill()
    zero, two = ((tmp_path / "log" / rank).read_text() for rank in ("0", "2"))
    assert zero.startswith("No answer from rank 1 of the run (")
    assert "Run the same command again: finished work is kept." in zero
    assert (TIMEOUT_VARIABLE in zero) == stopped
    assert two.startswith("No answer from " + ("rank 1" if by_torchrun else "a process"))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory$"), lost_process_errors():
        raise RuntimeError("out of memory")
    with pytest.raises(ProcessError, match=r"No answer from a process of the run \(store\)"), lost_process_errors():
        raise dist.DistStoreError("store")
