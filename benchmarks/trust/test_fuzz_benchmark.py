"""Damaged inputs are read, or raise a documented error; BENCHMARK_FULL=1 tries many.

An input fails if the reader raises an undocumented error, takes more than 10 seconds or 4 GiB, starts a program, unpickles a
class, opens a connection, writes outside its folder or leaves a temporary file. Hypothesis shrinks such inputs, and they are
added to `corpus/READER/`. `.benchmarks/fuzz-READER` is the current input, in case it kills the process.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import readers
from hypothesis import strategies as st
from readers import TARGETS, Target
from run import FULL

from clip_negatives.errors import DataError

INPUTS = 20_000 if FULL else 100
CURRENT = Path(__file__).resolve().parents[2] / ".benchmarks"
PATIENCE, MEMORY = 10, 2**32  # seconds and bytes of address space that an input may take; each thread takes about 100 MiB
FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect"}
WATCHED: list[tuple[str, list[str]]] = []  # folder and forbidden audit events of the input that is read now


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    for folder, events in WATCHED:
        if event in FORBIDDEN:
            events.append(event)
        elif event == "open" and str(arguments[1])[0] in "wax" and folder not in str(arguments[0]):
            events.append(f"open {arguments[0]}")


sys.addaudithook(_hear)


@contextmanager
def _watched(folder: Path, patience: float) -> Iterator[None]:
    """Limit time and memory in the block, and fail if it does something forbidden."""
    events: list[str] = []

    def hang(*_: object) -> None:
        events.append("hang")  # `except Exception` may hide the error
        raise TimeoutError(f"more than {patience} seconds")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, patience)
    WATCHED.append((str(folder), events))
    try:
        yield
    finally:
        WATCHED.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        events += [str(file) for file in folder.rglob("*.partial")]
        assert not events, f"the reader did {events}"


def outcome(target: Target, kind: str, content: bytes, folder: Path, patience: float = PATIENCE) -> str:
    """Return how reading an input ended; raise an error if it failed."""
    try:
        with _watched(folder, patience):
            return "left aside" if target.read(kind, content) else "read"
    except target.errors as error:
        name, message = type(error).__name__, str(error)
    assert len(message.encode("utf-8", "replace")) > 20, f"{name} without a message"
    return name


def campaign(name: str, target: Target, folder: Path, **limits: float) -> Counter[str]:
    """Give a reader inputs, other ones on each full run, and return how many ended how; add those that fail to the corpus."""
    outcomes, failures, current = Counter[str](), dict[str, tuple[str, bytes]](), CURRENT / f"fuzz-{name}"
    current.parent.mkdir(exist_ok=True)

    @hypothesis.settings(max_examples=INPUTS, database=None, deadline=None, suppress_health_check=hypothesis.HealthCheck)
    @hypothesis.seed(None if FULL else 0)
    @hypothesis.given(st.one_of([st.tuples(st.just(kind), contents) for kind, contents in target.inputs.items()]))
    def attempt(case: tuple[str, bytes]) -> None:
        current.write_bytes(case[1])
        try:
            outcomes[outcome(target, *case, folder, **limits)] += 1
        except Exception as error:
            failures[str(traceback.extract_tb(error.__traceback__)[-1])] = case  # the last one is the smallest
            raise

    try:
        attempt()
    finally:
        for kind, content in failures.values():
            file = readers.CORPUS / name / f"{hashlib.sha256(content).hexdigest()[:12]}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return outcomes


@pytest.mark.parametrize("name", TARGETS)
def test_inputs(name: str, tmp_path: Path) -> None:
    """Every reader gets the inputs of the corpus, and new ones."""
    target = TARGETS[name](tmp_path)
    for file in sorted((readers.CORPUS / name).glob("*")):
        outcome(target, file.name.partition(".")[2], file.read_bytes(), tmp_path)
    outcomes = campaign(name, target, tmp_path)
    assert sum(outcomes.values()) >= INPUTS // 2
    assert outcomes["read"] > 0


FAULTS = {
    "hang": (lambda: time.sleep(60), "did .'hang'"),
    "another error": (lambda: {}["x"], "x"),
    "memory": (lambda: bytearray(2**33), None),
    "a program": (lambda: subprocess.run(["true"], check=True), r"did .'subprocess\.Popen'"),
    "a file elsewhere": (lambda: Path(os.devnull).write_text(""), "did .'open /dev/null'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failures_are_noticed(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure ends the campaign, and its input is shrunk and kept."""
    do, message = FAULTS[fault]

    def read(kind: str, content: bytes) -> None:
        if content > b"x":
            do()
        raise DataError("Expected more than that, got too little of it.")

    target = Target((DataError,), {"bin": st.binary(max_size=2)}, read)
    monkeypatch.setattr(readers, "CORPUS", tmp_path)
    with pytest.raises((AssertionError, KeyError, MemoryError), match=message):
        campaign("faulty", target, tmp_path / "scratch", patience=0.05)
    assert [file.read_bytes() for file in (tmp_path / "faulty").iterdir()] == [b"y"]
