"""Cases of a run on a GPU, and the loop over them."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gpu.exit_codes import CASES_LEFT, DEVICE_LOST, FAILED, FINISHED
from gpu.rows import Rows


@dataclass(frozen=True)
class Case:
    """A measurement that yields one row.

    Args:
        kind: name of the result file, such as "loss".
        group: heading of its table on the page of benchmarks.
        name: what is measured, unique in the group.
        measure: returns the figures of the row.
        seconds: time that must be left to start it.
    """

    kind: str
    group: str
    name: str
    measure: Callable[[], dict[str, Any]]
    seconds: float = 30.0

    @property
    def key(self) -> str:
        """The identifier of its row."""
        return f"{self.group}: {self.name}"


def run_cases(cases: Iterable[Case], rows: Rows, left: Callable[[], float]) -> int:
    """Run the cases that have no row yet, those that failed in an earlier run last; return the exit code.

    Args:
        cases: the most important ones first.
        rows: the results.
        left: returns the seconds that are left.
    """
    open_cases = [case for case in cases if not rows.is_done(case.key)]
    waiting = [case for case in open_cases if not rows.failed_now(case.key)]
    n_left = 0
    for case in sorted(waiting, key=lambda case: rows.has_failed(case.key)):
        if left() < case.seconds:
            n_left += 1
            continue
        with rows.running(case.key):
            figures = _figures(case)
            rows.add(case.key, kind=case.kind, group=case.group, **figures)
        if ("error" in figures or "cannot" in figures) and not _release_memory():
            return DEVICE_LOST
    failed = sum(rows.failed_now(case.key) for case in open_cases)
    print(f"{len(open_cases) - n_left - failed} cases measured, {failed} failed, {n_left} left", flush=True)
    return FAILED if failed else CASES_LEFT if n_left else FINISHED


def _figures(case: Case) -> dict[str, Any]:
    try:
        return case.measure()
    except torch.OutOfMemoryError:
        return {"name": case.name, "cannot": "out of memory"}
    except Exception as error:  # one bad case must not end the run
        trace = traceback.format_exc()[-2000:]
        return {"name": case.name, "error": f"{type(error).__name__}: {error}".splitlines()[0], "trace": trace}


def _release_memory() -> bool:
    """Free cached memory; return whether the device still works in this process."""
    gc.collect()
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.empty_cache()
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError:
        return False
    return True
