"""The processes of one run, as torchrun starts them: who they are, and how they agree. All of it goes by gloo, on the CPU."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from clip_negatives.errors import ClipNegativesError, ProcessError
from clip_negatives.pulse import watched

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long a process waits for another: one may encode or cluster for hours while the others are done."""

ARRIVAL = timedelta(minutes=30)
"""How long a process waits for all of them to have started."""

FAREWELL = timedelta(seconds=30)
"""How long a process waits for the one that reports an error."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Hold which process of how many this is; alone, everything here is the plain call.

    Attributes:
        rank: 0 .. world_size-1.
        world_size: processes of the run, all of which make the calls below in the same order.
    """

    rank: int = 0
    world_size: int = 1

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Return every world_size-th item, beginning at the rank."""
        return items[self.rank :: self.world_size]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank.

        Raises:
            ProcessError: a process was lost.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with reporting_loss():
            dist.all_gather_object(values, value)
        return values

    def divided(self, compute: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
        """Return what `compute` returns for each item, in their order; each process computes those that are its own.

        Raises:
            ClipNegativesError: on every process, where one raises it.
        """
        shares = self.gather(self.together(lambda: [compute(item) for item in self.mine(items)]))
        return [shares[place % self.world_size][place // self.world_size] for place in range(len(items))]

    def first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns on rank 0, on every rank; what it raises there is raised on every rank too."""
        return from_first_rank(make) if self.world_size > 1 else make()

    def together(self, make: Callable[[], T]) -> T:
        """Return this process's ``make()`` once all of them are done; what it raises on one is raised on all.

        Raises:
            ClipNegativesError: that of the lowest rank that has one to report; its `rank` says which.
            ProcessError: a process was lost, or failed otherwise.
        """
        if self.world_size == 1:
            return make()
        result, error = None, None
        try:
            result = make()
        except Exception as raised:  # Handed to the other ranks, which wait for it, and raised on all of them below.
            error = raised
        errors = self.gather(_portable(error, self.rank))
        if error is not None and not isinstance(error, ClipNegativesError):
            raise error
        for found in sorted((one for one in errors if one is not None), key=lambda one: isinstance(one, HaltedError)):
            raise found
        return result  # type: ignore[return-value]  # only an error leaves it None


class HaltedError(ClipNegativesError):
    """Say that this process stopped because another one had to."""


ALONE = Processes()
"""One process."""


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started, by its environment variables; without torchrun this process is alone.

    A process on which an error is raised that another one reports ends with exit code 2, without a word.

    Raises:
        ProcessError: they cannot be joined.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    processes = _meet()
    try:
        with watched(processes.rank, processes.world_size):
            yield processes
    except ClipNegativesError as error:
        if error.rank in (None, processes.rank):
            raise
        # torchrun ends all processes with the first one that ends: the one that reports must be it.
        with suppress(RuntimeError):  # it is gone, or takes longer than it should
            if (farewell := dist.irecv(torch.empty(1), src=error.rank)) is not None:
                farewell.wait(FAREWELL)
        time.sleep(0.5)  # it leaves the group a moment before its sentence is out
        raise SystemExit(2) from error
    finally:
        dist.destroy_process_group()


def from_first_rank(make: Callable[[], T]) -> T:
    """Return what `make` returns on rank 0, on every rank; what it raises there is raised on every rank too.

    Outside of a process group this is ``make()``.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return make()
    message: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            message[0] = make()
        except Exception as error:  # Handed to the other ranks, which wait for it, and raised on all of them below.
            message[1] = error
            if isinstance(error, ClipNegativesError):
                error.rank = 0
    with reporting_loss():
        dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise message[1]
    result: T = message[0]
    return result


@contextmanager
def reporting_loss(is_loss: Callable[[RuntimeError], bool] = lambda _: True) -> Iterator[None]:
    """Raise our error where the processes lose each other, of which gloo says that a connection was closed.

    Args:
        is_loss: tells such an error from others, where the block may raise those too.

    Raises:
        ProcessError: a process was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        reason = re.sub(r"^\[[^]]*] ", "", str(error)).split(". ")[0].splitlines()[0][:200]  # not the line of gloo's source
        raise ProcessError(
            f"Expected every process of the run to go on, got one that is gone ({reason}). Run the same command again: "
            "what is finished is kept."
        ) from error


def is_loss(error: RuntimeError) -> bool:
    """Return whether an error says that processes lost each other: gloo's have no class of their own, but name its source."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _meet() -> Processes:
    """Wait for all processes and let them talk by the default group; what a clusterer has them say goes by it too."""
    try:
        with reporting_loss():
            store, rank, world_size = next(rendezvous("env://", timeout=ARRIVAL))
            store.set(f"clip_negatives/{rank}", b"arrived")
            store.wait([f"clip_negatives/{other}" for other in range(world_size)], ARRIVAL)
            # The timeout of a group is that of meeting as well as of every message: hence the store before it.
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=PATIENCE)
    except ValueError as error:
        raise ProcessError(
            f"Expected the environment variables that torchrun sets for each process, got: {str(error).rpartition(': ')[2]}. "
            "Start the processes by torchrun, or unset WORLD_SIZE."
        ) from error
    return Processes(rank, world_size)


def _portable(error: Exception | None, rank: int) -> ClipNegativesError | None:
    """Return the error as one that any process can raise."""
    if error is None:
        return None
    ours = error if isinstance(error, ClipNegativesError) else ProcessError(f"Process {rank} failed with {error!r}.")
    ours.rank = rank
    return ours
