"""Give readers their inputs, in a process that is watched by another."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import torch
from readers import READERS, Reader

import clip_negatives.dataset.csv

CORPUS = Path(__file__).resolve().parent / "corpus"
PATIENCE = 10.0
MEMORY = 2**30
KEPT = 2**16
"""Seconds for an input; bytes that an input may add to the resident memory; bytes of the largest input that is kept."""

SHARED = Path("/dev/shm")
"""Where files need no disk, on Linux."""

NUMBER, SINCE, OUTCOMES = 0, 1, 2
"""Places in what the two processes share: the input at hand, since when (ms), and from here on how many ended how."""


@dataclass
class Tally:
    """Count how the inputs of a reader ended.

    Attributes:
        outcomes: "read" or the class of the error, and how often.
        lost: what was lost, in a line each.
        seconds: how long it took.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Here:
    """Stand for a pool of threads, which cost more than all else where images have four pixels."""

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, make: Callable[..., Any], *some: Iterable[Any]) -> Iterable[Any]:
        """Return what is made of each."""
        return map(make, *some)


def campaign(name: str, inputs: int, seconds: float, seed: int) -> Tally:
    """Give a reader its inputs, in a process that is watched."""
    context = multiprocessing.get_context("fork")
    shared, tally, started, number = context.RawArray("q", 64), Tally(), time.monotonic(), 0
    while number < inputs and (number == 0 or time.monotonic() - started < seconds):
        shared[NUMBER] = number
        ours, theirs = context.Pipe(duplex=False)
        # Starting includes making the folder of the reader, which may take a while.
        shared[SINCE] = int((time.monotonic() + 60) * 1000)
        process = context.Process(target=_read_all, args=(name, number, inputs, seconds, seed, shared, theirs))
        process.start()
        theirs.close()
        fault = _watch(process, shared, ours, tally.lost)
        for place, outcome in enumerate(_outcomes()):
            tally.outcomes[outcome] += shared[OUTCOMES + place]
            shared[OUTCOMES + place] = 0
        number = shared[NUMBER]
        if fault is None:
            break
        with tempfile.TemporaryDirectory() as folder:
            kind, data = READERS[name](Path(folder)).make(random(seed, name, number))
        tally.lost.append(f"{_keep(name, kind, data)}: {fault}")
        tally.outcomes["lost"] += 1
        number += 1
    tally.outcomes = +tally.outcomes
    tally.seconds = time.monotonic() - started
    return tally


def _watch(process: Any, shared: Any, told: Any, lost: list[str]) -> str | None:
    """Wait for the end of a process, and note what it tells; return what kept it from reading all inputs, or None."""
    alive = True
    while alive:
        process.join(0.2)
        alive = process.is_alive()
        with suppress(EOFError):
            while told.poll():
                lost.append(told.recv())
        if alive and time.monotonic() - shared[SINCE] / 1000 > PATIENCE:
            process.kill()
            process.join()
            return f"more than {PATIENCE:.0f} seconds"
    if process.exitcode == 0:
        return None
    return f"ended by {signal.Signals(-process.exitcode).name}" if process.exitcode < 0 else f"ended with {process.exitcode}"


def _outcomes() -> list[str]:
    from clip_negatives import errors

    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.ClipNegativesError)
    ]
    return ["read", "left aside", "lost", *sorted(kind.__name__ for kind in kinds)]


def random(seed: int, name: str, number: int) -> Random:
    """Return what an input is drawn from."""
    return Random(f"{seed} {name} {number}")


def _read_all(name: str, first: int, inputs: int, seconds: float, seed: int, shared: Any, lost: Any) -> None:
    """Be the process that reads: inputs one after another, until all are read or the time is up."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    for module in (clip_negatives.dataset.csv, clip_negatives.dataset.source, clip_negatives.dataset.tars):
        module.ThreadPoolExecutor = Here  # type: ignore[attr-defined]
    place, seen = {outcome: OUTCOMES + place for place, outcome in enumerate(_outcomes())}, Counter[str]()
    scratch = Path(tempfile.mkdtemp(dir=SHARED if SHARED.is_dir() else None, prefix="fuzz-"))
    try:
        reader = READERS[name](scratch)
        peak, until = _peak(), time.monotonic() + seconds
        for number in range(first, inputs):
            if time.monotonic() > until:
                return
            shared[NUMBER], shared[SINCE] = number, int(time.monotonic() * 1000)
            kind, data = reader.make(random(seed, name, number))
            outcome, fault, where = read_one(reader, kind, data)
            grown, peak = _peak() - peak, _peak()
            if grown > MEMORY:
                outcome, fault, where = "lost", f"{grown / 2**20:.0f} MiB of memory", f"memory {kind}"
            shared[place[outcome]] += 1
            if outcome == "lost":
                seen[where] += 1
                # One bug has many inputs: two are enough to keep.
                lost.send(f"{_keep(name, kind, data) if seen[where] <= 2 else f'input {number}'}: {fault}"[:1000])
        shared[NUMBER] = inputs
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_one(reader: Reader, ending: str, data: bytes) -> tuple[str, str, str]:
    """Return how an input ended, and of a loss what happened and where."""
    try:
        aside = reader.read(ending, data)
    except reader.errors as error:
        try:
            sound = len(str(error).encode("utf-8", "replace")) > 20
        except UnicodeError:
            sound = False
        kind = next(one.__name__ for one in reader.errors if isinstance(error, one))
        return (kind, "", "") if sound else ("lost", f"an error that says nothing: {error!r}", "words")
    except Exception as error:  # whatever it is, it is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = next(
            (one for one in reversed(traceback.extract_tb(error.__traceback__)) if "clip_negatives" in one.filename), frame
        )
        where = f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}, {Path(frame.filename).name}:{frame.lineno}"
        return "lost", f"{where}: {str(error)[:200]!a}", where
    return "left aside" if aside else "read", "", ""


def _keep(name: str, kind: str, data: bytes) -> str:
    """Add an input to the corpus, unless it is large; return what it is called."""
    file = CORPUS / name / f"{hashlib.sha256(data).hexdigest()[:12]}.{kind}"
    if len(data) > KEPT:
        return f"{file.name} ({len(data)} bytes, not kept)"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return str(file.relative_to(CORPUS))


def replay(name: str) -> list[str]:
    """Read what earlier campaigns have found with one reader; return what is lost, in a line each."""
    files = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[name](Path(folder))
        ended = [(file, read_one(reader, file.name.partition(".")[2], file.read_bytes())) for file in files]
    return [f"{name}/{file.name}: {fault}" for file, (outcome, fault, _) in ended if outcome == "lost"]
