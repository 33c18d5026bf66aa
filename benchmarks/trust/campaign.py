"""Which faults befall which command, how often; and what came of it."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import spoils
import stops
from cases import Case, Known, LostError
from launches import FORKS, PRELOADED, Running, beside
from record import Row, write
from references import learn
from subjects import SUBJECTS, with_options, write_data

HOW_MANY = {"prepare": 50, "prepare tars": 40, "generate": 60, "train": 30, "compare": 20}
"""Injections into each command."""

WHOLE = {"prepare": 0.7, "prepare tars": 0.7, "generate": 0.7, "train": 0.3, "compare": 0.5}
"""Share of the runs stopped by a signal that are whole processes: about a quarter of all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Hold a kind of fault.

    Attributes:
        name: what it is.
        inject: disturbs a case and raises `LostError` where something is not as promised.
        weight: how often it is drawn, against the others.
        commands: that it can befall.
        outcome: what is promised.
    """

    name: str
    inject: Callable[[Case], None]
    weight: int
    commands: tuple[str, ...]
    outcome: str


ALL = ("prepare", "generate", "train", "compare")
SAME = "the next run gives the undisturbed result and does nothing finished again"
SAID = "one sentence and exit code 2"
CHANGED = "nothing of the old data is used; other texts and paths are refused by row, changed pictures told of"

FAULTS = (
    Fault("SIGKILL", partial(stops.stop, number=signal.SIGKILL), 6, ALL, f"no half file under a final name; {SAME}"),
    Fault("SIGTERM", partial(stops.stop, number=signal.SIGTERM), 3, ALL, f"ends at once, with all its processes; {SAME}"),
    Fault("SIGINT", partial(stops.stop, number=signal.SIGINT), 3, ALL, f"exit code 130 without a traceback; {SAME}"),
    Fault("full disk", stops.fill, 4, ALL, f"{SAID}; {SAME}"),
    Fault("read-only folder", stops.forbid, 2, ALL, f"{SAID}; {SAME}"),
    Fault("clock set back", stops.set_clock_back, 2, ALL, SAME),
    Fault("a rank dies", partial(stops.lose_rank, number=signal.SIGKILL), 2, ALL[:3], f"the other says so: {SAID}; {SAME}"),
    Fault("a rank stalls", partial(stops.lose_rank, number=signal.SIGSTOP), 2, ALL[:3], f"the other names it: {SAID}; {SAME}"),
    Fault("NaN feature", spoils.poison_features, 2, ALL[:3], f"what it is of is named: {SAID}; {SAME}"),
    Fault("loss spike", spoils.spike, 2, ALL[2:], f"no checkpoint of it is written: {SAID}; {SAME}"),
    Fault(
        "changed data",
        spoils.change_data,
        2,
        ALL,
        CHANGED,
    ),
    Fault("other encoder", spoils.change_encoder, 2, ("prepare", "compare"), "nothing of the other encoder is used"),
    Fault("damaged file", spoils.damage, 2, ALL, "made again, or named with what to do"),
)

SMALL = (("prepare", "SIGKILL"), ("prepare", "NaN feature"), ("prepare", "a rank stalls"), ("generate", "full disk"))
SMALL += (("generate", "SIGINT"), ("generate", "damaged file"))


Injection = tuple[str, Fault, str]
"""Command, fault and what the injection is drawn from."""


def run(planned: Sequence[Injection], *, seed: int, minutes: float, small: bool, kept: bool) -> None:
    """Inject what is planned, as far as the time goes; show each, and keep the result if asked."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what is mounted is not left
    began = time.monotonic()
    done: list[tuple[str, Fault, str | None]] = []
    whole = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data, known = _prepared(scratch, [name for name, _, _ in planned], small=small)
        for number, (name, fault, draw) in enumerate(planned):
            if time.monotonic() - began > 60 * minutes:
                break
            chance = random.Random(draw)
            case = Case(SUBJECTS[name], known[name], chance, scratch / f"{number:03d}", data)
            case.whole = fault.name.startswith("SIG") and not small and chance.random() < WHOLE[name]
            whole += case.whole
            reason = _injected(fault, case)
            done.append((name, fault, reason))
            seconds = f"{time.monotonic() - began:.0f} s"
            print(f"{number + 1}/{len(planned)} {seconds} {name}: {fault.name} ({draw}): {reason or 'survived'}", flush=True)
        mounted = stops.can_mount(scratch)
    figures = {"seed": seed, "whole_processes": whole, "full_disk": "tmpfs" if mounted else "largest size of a file"}
    if kept:
        call = "python benchmarks/trust/faults.py" + (" --small" if small else "")
        print(write("faults", _rows(done), command=call, seconds=time.monotonic() - began, small=small, **figures))


def plan(seed: int, only: str | None, command: str | None, injections: int | None, *, small: bool) -> list[Injection]:
    """Return what to inject, in an order that is drawn: every fault of a command once at least, the others drawn."""
    if only is not None and only not in {fault.name for fault in FAULTS}:
        sys.exit(f"Expected a fault among {', '.join(fault.name for fault in FAULTS)}, got {only!r}.")
    chance, planned = random.Random(seed), list[Injection]()
    by_name = {fault.name: fault for fault in FAULTS}
    if small:
        return [(name, by_name[fault], f"{seed} {name} {fault}") for name, fault in SMALL]
    for name, count in HOW_MANY.items():
        some = [fault for fault in FAULTS if SUBJECTS[name].command in fault.commands and only in (None, fault.name)]
        if not some or command not in (None, name):
            continue
        count = injections or count
        drawn = [*some, *chance.choices(some, [fault.weight for fault in some], k=max(0, count - len(some)))][:count]
        planned += [(name, fault, f"{seed} {name} {place}") for place, fault in enumerate(drawn)]
    chance.shuffle(planned)
    return planned


def _prepared(scratch: Path, names: Sequence[str], *, small: bool) -> tuple[Path, dict[str, Known]]:
    """Write the data, cluster them twice, and run every command undisturbed."""
    FORKS.set_forkserver_preload(PRELOADED)
    data = scratch / "data"
    write_data(data)
    prepare = SUBJECTS["prepare"]
    Running(["--version"], data).wait()
    for name, options in (("clusters", ()), ("other", prepare.other)):
        Running(with_options(prepare.line(data, data), options), data).wait()
        (data / "out").rename(data / name)
    shutil.rmtree(beside(data))
    return data, {name: learn(SUBJECTS[name], scratch, data, whole=not small) for name in dict.fromkeys(names)}


def _injected(fault: Fault, case: Case) -> str | None:
    """Inject a fault, and return what was lost, or None."""
    case.folder.mkdir()
    try:
        fault.inject(case)
    except LostError as error:
        return str(error)
    finally:
        for folder in case.folder.parent.glob(f"{case.folder.name}*"):
            shutil.rmtree(folder)
    return None


def _rows(done: Sequence[tuple[str, Fault, str | None]]) -> list[Row]:
    """Return how each fault of each command ended."""
    rows = []
    for name in SUBJECTS:
        for fault in FAULTS:
            ends = [reason for one, other, reason in done if (one, other) == (name, fault)]
            lost = sum(reason is not None for reason in ends)
            if ends:
                rows.append(Row(name, fault.name, len(ends), len(ends) - lost, lost, fault.outcome))
    return rows
