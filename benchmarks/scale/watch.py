"""Time and memory of some work in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from run import memory_mib


def watched(work: Callable[[], Any]) -> tuple[Any, float, float, float, float]:
    """Return the result, seconds, seconds of the processor, and memory in MiB before and at the peak.

    Memory is that of the process without mapped files, read every 5 ms.
    """
    over, first = threading.Event(), memory_mib("RssAnon")
    peaks = [first]

    def watch() -> None:
        while not over.wait(0.005):
            peaks[0] = max(peaks[0], memory_mib("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    over.set()
    watcher.join()
    return result, clock, processor, first, max(peaks[0], memory_mib("RssAnon"))
