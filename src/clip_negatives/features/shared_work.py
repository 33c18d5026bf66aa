"""Work that the processes of a run share: an error on one of them soon stops all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from clip_negatives.distributed.processes import HaltedError, Processes
from clip_negatives.features.encoding import Advance
from clip_negatives.progress import Stage

T = TypeVar("T")


class SharedWork:
    """Steps of a run that several processes share.

    Attributes:
        processes: the processes of the run.
        halt: file on a shared disk by which a process stops the others.
    """

    processes: Processes
    halt: Path

    def _for_each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do the work for this process's items; an error on one process soon stops all processes."""

        def work_on_all() -> None:
            try:
                for item in items:
                    work(item)
            except Exception as error:
                if not isinstance(error, HaltedError) and self.processes.world_size > 1:
                    with suppress(OSError):  # stopping the other processes matters less than the error
                        self.halt.touch()
                raise

        self.processes.together(work_on_all)

    def _title(self, title: str) -> str:
        """Return the title of a stage, whose counts are those of this process."""
        rank, world_size = self.processes.rank, self.processes.world_size
        return f"{title}, process {rank} of {world_size}" if world_size > 1 else title

    def _advance(self, stage: Stage) -> Advance:
        """Return a callback that counts finished items, and stops if another process has failed."""

        def advance(count: int) -> None:
            stage.advance(count)
            if self.processes.world_size > 1 and self.halt.exists():
                raise HaltedError("Another process of the run stopped.")

        return advance
