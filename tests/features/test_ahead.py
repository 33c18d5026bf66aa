"""Items are read ahead in a thread: in order, in limited numbers, and with the errors of the items."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest

from clip_negatives.advice import argument, named
from clip_negatives.errors import DataError
from clip_negatives.features import ahead
from clip_negatives.features.ahead import read_ahead


def _readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "clip-negatives-read-ahead"]


def test_items_come_in_order_and_the_thread_ends() -> None:
    assert list(read_ahead(range(100), 3)) == list(range(100))
    assert list(read_ahead([], 3)) == []
    assert _readers() == []


def test_items_are_read_while_earlier_ones_are_used() -> None:
    second_is_read = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second_is_read.set()
        yield 2

    reading = read_ahead(items(), 1)
    assert next(reading) == 1
    assert second_is_read.wait(10)
    assert list(reading) == [2]


def test_the_number_of_items_ahead_is_limited() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1, 100):
            read.append(item)
            yield item

    reading = read_ahead(items(), 3)
    for used in (1, 2, 3):
        assert next(reading) == used
        time.sleep(0.05)
        assert len(read) <= used + 3 + 1  # one more waits for a place
    reading.close()
    assert _readers() == []


def test_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise DataError("The second item is damaged.")

    reading = read_ahead(items(), 5)
    assert next(reading) == 1
    with pytest.raises(DataError, match="second item"):
        next(reading)
    assert _readers() == []


def test_errors_name_the_options_of_the_command() -> None:
    def items() -> Iterator[str]:
        yield argument("image")

    with named({"image": "--csv-img-key"}):
        assert list(read_ahead(items(), 1)) == ["--csv-img-key"]


def test_closing_does_not_wait_for_a_slow_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "SECONDS_TO_END", 0.01)
    answer = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        answer.wait(60)

    reading = read_ahead(items(), 1)
    assert next(reading) == 1
    began = time.monotonic()
    reading.close()
    assert time.monotonic() - began < 10
    answer.set()
    for thread in _readers():
        thread.join(10)
    assert _readers() == []


SCRIPT = """
    import signal, time
    from clip_negatives.features.ahead import read_ahead
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells disable it for background processes

    def items():
        print("reading", flush=True)
        time.sleep(600)
        yield 1

    next(read_ahead(items(), 1))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_process_that_waits_for_a_read(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"reading\n"
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT)
