"""Processes that fail or are lost: one of them says what happened, the others end."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch

from clip_negatives import processes
from clip_negatives.errors import ClipNegativesError, InputError, ProcessError
from clip_negatives.processes import joined
from clip_negatives_parallel_kmeans.clusterer import ParallelKMeans
from clip_negatives_parallel_kmeans.ranks import Ranks
from tests.ranks import run


def _refuse() -> None:
    raise InputError("Expected another share.")


def _work(case: str) -> None:
    ranks = Ranks.of_group()
    if case == "refused":
        ranks.together(_refuse if ranks.rank == 1 else lambda: None)
    elif case == "alike":
        ParallelKMeans(5, init="random").fit_parallel(torch.ones(20, 2), generator=torch.Generator().manual_seed(0))
    elif case == "slow":
        time.sleep(4.5 if ranks.rank == 0 else 0)
        print("total", float(ranks.total(torch.ones(1))), flush=True)  # noqa: T201
    elif ranks.rank == 1:
        os._exit(0)
    else:
        lost = [lambda: ranks.largest(1), lambda: ranks.total(torch.ones(1)), lambda: ranks.joined(torch.ones(ranks.rank))]
        for talk in [*lost, lambda: ranks.from_first(torch.ones(1)), lambda: ranks.together(lambda: None)]:
            with pytest.raises(ProcessError) as told:
                talk()
            print("told", told.value, flush=True)  # noqa: T201


def _cases(*cases: str) -> None:
    for case, port in zip(cases, os.environ["MASTER_PORTS"].split(), strict=True):
        os.environ["MASTER_PORT"] = port
        try:
            with mock.patch.object(processes, "ARRIVAL", timedelta(seconds=3)), joined():
                _work(case)
        except ClipNegativesError as error:
            print(f"{type(error).__name__}: {error}", flush=True)  # noqa: T201
        except SystemExit as end:
            print("exit code", end.code, flush=True)  # noqa: T201


def test_one_process_reports_and_the_others_end_of_a_lost_one_each_hears(tmp_path: Path) -> None:
    zero, one, two = (said.splitlines() for said in run(3, _cases, "refused", "alike", "slow", "lost", log=tmp_path))
    assert [zero[0], one[0], two[0]] == ["exit code 2", "InputError: Expected another share.", "exit code 2"]
    assert zero[1].startswith("InputError: Expected at least 5 different samples")
    assert one[1] == two[1] == "exit code 2"
    assert zero[2] == two[2] == "total 3.0"  # one may take longer than they waited for each other to start
    assert one[2:] == ["total 3.0"]
    for said in (zero[3:], two[3:]):
        assert len(said) == 5
        assert all("Run the same command again" in line and line.startswith("told Expected every process") for line in said)
