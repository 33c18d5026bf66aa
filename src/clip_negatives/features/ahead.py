"""Read items in a thread while earlier items are used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")

SECONDS_TO_END = 1.0  # longest wait for the thread at the end: a read from a network may take much longer


@dataclass(frozen=True, slots=True)
class _End:
    """End of the items: all were read, or the next one has an error."""

    error: BaseException | None = None


def read_ahead(items: Iterable[T], count: int) -> Generator[T]:
    """Yield the items in order, while a thread reads up to `count` items ahead; an error is raised in the place of its item.

    Close the generator to end the thread. An interrupted process does not wait for a thread that waits for a network.
    """
    results: SimpleQueue[T | _End] = SimpleQueue()
    places, stopped = Semaphore(count), Event()

    def read() -> None:
        try:
            for item in items:
                places.acquire()
                if stopped.is_set():
                    return
                results.put(item)
        except BaseException as error:  # raised in the thread that uses the items
            results.put(_End(error))
        else:
            results.put(_End())

    # The words of errors depend on the context.
    thread = Thread(target=copy_context().run, args=(read,), name="clip-negatives-read-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := results.get(), _End):
            places.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        places.release()
        thread.join(SECONDS_TO_END)
