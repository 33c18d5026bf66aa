"""The processes of one run, started by torchrun: they share work, results and errors, over gloo on the CPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import distributed as dist

from clip_negatives.distributed.failures import lost_process_errors, timeout
from clip_negatives.errors import ClipNegativesError, ProcessError

T = TypeVar("T")

EXCHANGES = "clip_negatives/exchanges/{}"  # key in the store, by rank: number of collective calls that the process has begun


class HaltedError(ClipNegativesError):
    """Error of a process that stopped because another process failed."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run, as seen by one process.

    All processes make the same calls in the same order. If one process fails, the call raises an error on all processes:

    * An error in `first`, `together` or `divided` is raised on every process; its ``rank`` says which process failed. An error
      that is not a `ClipNegativesError` stays unchanged on its process; the other processes raise a `ProcessError`.
    * If a process is killed, or does not answer within ``CLIP_NEGATIVES_TIMEOUT`` seconds (default: one day), the other
      processes raise a `ProcessError`. Its message names the lost ranks if `joined` started the group.

    Attributes:
        rank: 0 .. world_size-1.
        world_size: number of processes. With 1 (the default) nothing is sent.
        group: process group with the backend gloo; None is the default group.
        store: key-value store of the run, where each process counts its collective calls; None if unknown.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None
    store: Any = None
    _exchanges: Iterator[int] = field(default_factory=lambda: itertools.count(1), init=False, repr=False, compare=False)

    @classmethod
    def current(cls) -> Processes:
        """Return the processes of the default group of torch.distributed; without a group, one process."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        world = dist.group.WORLD
        if world not in KNOWN:
            group = dist.new_group(backend="gloo", timeout=timeout()) if dist.get_backend() == "nccl" else None
            KNOWN[world] = cls(dist.get_rank(), dist.get_world_size(), group)
        return KNOWN[world]

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process: items number rank, rank + world_size, ..."""
        return items[self.rank :: self.world_size]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self._exchange():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def divided(self, compute: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
        """Return ``[compute(item) for item in items]``; each process computes its own items."""
        shares = self.gather(self.together(lambda: [compute(item) for item in self.mine(items)]))
        return [shares[place % self.world_size][place // self.world_size] for place in range(len(items))]

    def first(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its result on every rank."""
        if self.world_size == 1:
            return make()
        results: list[Any] = [self.together(lambda: make() if self.rank == 0 else None)]
        with self._exchange():
            dist.broadcast_object_list(results, src=0, group=self.group)
        return results[0]  # type: ignore[no-any-return]

    def together(self, make: Callable[[], T]) -> T:
        """Return this process's ``make()`` once all processes are done; raise the error of the lowest rank that failed."""
        if self.world_size == 1:
            return make()
        result: T | None = None
        error: ClipNegativesError | None = None
        unexpected: Exception | None = None
        try:
            result = make()
        except ClipNegativesError as raised:
            error = raised
        except Exception as raised:  # the other processes wait: send them an error to raise
            unexpected, error = raised, ProcessError(f"Process {self.rank} failed with {raised!r}. See its traceback.")
        if error is not None:
            error.rank = self.rank
        errors = [failure for failure in self.gather(error) if failure is not None]
        if unexpected is not None:
            raise unexpected
        if errors:
            raise min(errors, key=lambda failure: isinstance(failure, HaltedError))
        return result  # type: ignore[return-value]  # None only after an error

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Count a collective call in the store, so that an error can name the processes that did not begin the call."""
        number = next(self._exchanges)
        with lost_process_errors(lambda: self._missing(number)):
            if self.store is not None:
                self.store.set(EXCHANGES.format(self.rank), str(number))
            yield

    def _missing(self, number: int) -> list[int]:
        """Return the ranks that have not begun collective call `number`, or [] if the store cannot be read."""
        # Without torchrun, rank 0 holds the store: if rank 0 is lost, reading may block for ever.
        readable = self.rank == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        with suppress(RuntimeError):
            if self.store is not None and readable:
                return [rank for rank in range(self.world_size) if int(self.store.get(EXCHANGES.format(rank))) < number]
        return []


ALONE = Processes()  # a single process
KNOWN: WeakKeyDictionary[Any, Processes] = WeakKeyDictionary()  # processes of each default group
