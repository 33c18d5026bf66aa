"""Work that independent tasks share: each takes its own parts first, then parts that no other task has claimed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from clip_negatives.distributed.task import Task
from clip_negatives.errors import DataError
from clip_negatives.printing import log
from clip_negatives.progress import stage
from clip_negatives.storage.claims import RENEWED, STALE, Claims
from clip_negatives.storage.task_folder import Record, TaskFolder

POLLED = 1.0  # seconds between two looks at what other tasks have done
PATIENCE = 30.0  # seconds to wait for other tasks before a log line


@dataclass(slots=True)
class TaskReport:
    """Outcome of a task.

    Attributes:
        n_parts: number of all parts.
        done: names of the parts that this task completed.
        n_left: number of parts that are not complete; other tasks may be working on them.
        claimed: names of the parts that are not complete and that another task has claimed.
        faults: what is wrong with the parts that this task could not complete, or that lost too much.
        warnings: what is left out within the limits.
    """

    n_parts: int
    done: list[str] = field(default_factory=list)
    n_left: int = 0
    claimed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def work_through(
    folder: TaskFolder,
    task: Task,
    title: str,
    *,
    is_done: Callable[[int, Record], bool],
    work: Callable[[int], None],
) -> TaskReport:
    """Complete parts until every part is complete or claimed by another task; the task goes on after a part with a DataError.

    Args:
        folder: the begun folder.
        task: this task.
        title: title of the progress.
        is_done: returns whether the record of one of the task's own parts is up to date; it gets the number of the part.
        work: completes the part of a number.
    """
    report, claims = TaskReport(len(folder.names)), Claims(folder, str(task))
    with stage(title, len(task.own(folder.names)), "parts") as running:
        for number, is_own in _in_order(folder, task):
            name = folder.names[number]
            record = folder.record(name)
            if record is None or (is_own and not is_done(number, record)):
                _work_on(number, claims, report, work, earlier=record)
            running.advance(int(is_own))
    complete = folder.listed()
    report.n_left = len(folder.names) - len(complete)
    report.claimed = [name for name in report.claimed if name not in complete]
    return report


def _in_order(folder: TaskFolder, task: Task) -> Iterator[tuple[int, bool]]:
    """Yield the number of each part that may be left to do, and whether it is one of the task's own."""
    numbers = range(len(folder.names))
    yield from ((number, True) for number in task.own(numbers))
    if task.count > 1:
        complete = folder.listed()
        yield from ((number, False) for number in task.others(numbers) if folder.names[number] not in complete)


def _work_on(number: int, claims: Claims, report: TaskReport, work: Callable[[int], None], earlier: Record | None) -> None:
    """Complete a part, unless another task has it or has completed it since its record was `earlier`."""
    name = claims.folder.names[number]
    with claims.claimed(name) as is_mine:
        if not is_mine:
            report.claimed.append(name)
            return
        if claims.folder.record(name) == earlier:
            try:
                work(number)
            except DataError as error:
                report.faults.append(str(error))
                return
            report.done.append(name)
    claims.release(name)


def share_until_done(
    names: Sequence[str],
    task: Task,
    claims: Claims,
    *,
    done: Callable[[], Collection[str]],
    work: Callable[[str], None],
) -> None:
    """Complete parts together with the other tasks, and wait until all are complete.

    Claims on complete parts stay, because other machines may see the files of a part later than its claim.

    Args:
        names: names of all parts, in an order that all tasks share.
        task: this task.
        claims: claims of this task.
        done: returns the names of the parts that are complete on the disk.
        work: completes a part. After an error, other tasks may try the part.
    """
    waits_since: float | None = None
    has_told = False
    while True:
        complete, looked = done(), time.monotonic()
        left = [name for name in (*task.own(names), *task.others(names)) if name not in complete]
        if not left:
            return
        completed = 0
        for name in left:
            if time.monotonic() - looked > RENEWED:  # before claims on parts that are complete by now look abandoned
                complete, looked = done(), time.monotonic()
            completed += name not in complete and _tried(name, claims, work)
        waits_since = None if completed else waits_since or looked
        if waits_since is not None:
            if not has_told and time.monotonic() - waits_since > PATIENCE:
                wait = f"If one was killed on another machine, it is replaced after {STALE / 60:.0f} minutes"
                log(f"waiting for other tasks, which have claimed {len(left)} parts, such as {left[0]}. {wait}.")
                has_told = True
            time.sleep(POLLED)


def _tried(name: str, claims: Claims, work: Callable[[str], None]) -> bool:
    """Complete a part unless another task has claimed it, and return whether this task did."""
    with claims.claimed(name) as is_mine:
        if is_mine:
            try:
                work(name)
            except BaseException:
                claims.release(name)
                raise
    return is_mine
