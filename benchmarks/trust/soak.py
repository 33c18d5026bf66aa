"""An hour of training in one process tree, watched from outside: python benchmarks/trust/soak.py [--minutes 60] [--small].

``clip-negatives train`` on real listings of the catalogue, with two workers that read images and clusters made anew before
every epoch. Every ten seconds: resident memory of the training process, with and without the files that it maps, and of the
tree, open files, threads, and files and bytes of shared memory. Each is flat where its mean over the last quarter of the time
is hardly above that over the second (`ALLOWED`); the first quarter, in which caches fill, does not count.

The result goes to ``benchmarks/results/<machine>/trust-soak.json``, of ``--small`` (a minute) to ``.benchmarks/<machine>/``.
"""

from __future__ import annotations

import argparse
import csv
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from record import Row, write

from clip_negatives import catalogue

EVERY = 10.0
"""Seconds between two looks."""

ROWS, BATCH = 1536, 128
"""Listings and size of the batches."""

ALLOWED: Mapping[str, tuple[float, float]] = {
    "resident_mib": (1.02, 8.0),
    "private_mib": (1.02, 8.0),
    "tree_mib": (1.02, 16.0),
    "files": (1.0, 1.0),
    "threads": (1.0, 1.0),
    "processes": (1.0, 0.5),
    "shared_files": (1.0, 1.0),
    "shared_mib": (1.02, 4.0),
}
"""What the last quarter may be: so many times the second, or so much more, whichever is more."""


@dataclass(frozen=True, slots=True)
class Look:
    """Hold what a process tree used at a moment."""

    seconds: float
    epochs: int
    resident_mib: float
    private_mib: float
    tree_mib: float
    files: int
    threads: int
    processes: int
    shared_files: int
    shared_mib: float


def tree(root: int) -> list[int]:
    """Return a process and those that it started."""
    found = [root]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def share_mib(process: int) -> float:
    """Return the memory of a process, of pages that several have its share, MiB."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def status(process: int, name: str) -> int:
    """Return a number of ``/proc/<process>/status``."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1])


def look(root: int, seconds: float, log: Path) -> Look | None:
    """Look at a process tree; None where one of its processes ended meanwhile, as workers do after an epoch."""
    try:
        processes = tree(root)
        shared = [file.stat().st_size for file in Path("/dev/shm").iterdir() if file.name.startswith("torch_")]
        epochs = log.read_text().count("Start epoch") if log.exists() else 0
        return Look(
            seconds=round(seconds, 1),
            epochs=epochs,
            resident_mib=status(root, "VmRSS") / 1024,
            private_mib=status(root, "RssAnon") / 1024,
            tree_mib=sum(share_mib(process) for process in processes),
            files=len(list(Path(f"/proc/{root}/fd").iterdir())),
            threads=status(root, "Threads"),
            processes=len(processes),
            shared_files=len(shared),
            shared_mib=sum(shared) / 2**20,
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def write_listings(folder: Path) -> Path:
    """Write real listings as csv."""
    exported = catalogue.export(folder / "listings", split="train", format="csv") / "train.csv"
    rows = list(csv.reader(exported.open(encoding="utf-8"), delimiter="\t"))
    file = folder / "train.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(rows[: ROWS + 1])
    return file


def command(train: Path, logs: Path) -> list[str]:
    """Return the training to watch; it has more epochs than there is time for."""
    return [
        *(sys.executable, "-m", "clip_negatives", "train", "--refresh-every", "1", "--"),
        *("--train-data", str(train), "--dataset-type", "csv", "--model", "clip-negatives-tiny", "--batch-size", str(BATCH)),
        *("--epochs", "100000", "--workers", "2", "--lr", "1e-3", "--warmup", "10", "--precision", "fp32", "--device", "cpu"),
        *("--logs", str(logs), "--name", "soak", "--save-frequency", "1", "--delete-previous-checkpoint"),
    ]


def watched(home: Path, minutes: float) -> list[Look]:
    """Train for some minutes and return what was seen."""
    logs, looks = home / "logs", list[Look]()
    start = time.monotonic()
    with (home / "output.txt").open("w") as output:
        training = subprocess.Popen(command(write_listings(home), logs), stdout=output, stderr=subprocess.STDOUT)
        try:
            while (now := time.monotonic() - start) < 60 * minutes:
                if training.poll() is not None:
                    raise SystemExit(f"The training ended after {now:.0f} s:\n{(home / 'output.txt').read_text()[-2000:]}")
                if (seen := look(training.pid, now, logs / "soak" / "out.log")) is not None and seen.epochs > 0:
                    looks.append(seen)
                    print(asdict(seen), flush=True)
                time.sleep(EVERY)
        finally:
            training.send_signal(signal.SIGTERM)
            training.wait(60)
    return looks


def flat(looks: Sequence[Look]) -> dict[str, tuple[float, float, bool]]:
    """Return for each figure its mean over the second and over the last quarter, and whether it is flat."""
    quarter = max(1, len(looks) // 4)
    found = {}
    for name, (factor, more) in ALLOWED.items():
        early, late = (mean(getattr(one, name) for one in part) for part in (looks[quarter : 2 * quarter], looks[-quarter:]))
        found[name] = early, late, late <= max(factor * early, early + more)
    return found


def main() -> None:
    """Watch a training, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    minutes = 1.0 if options.small else options.minutes
    with tempfile.TemporaryDirectory() as home:
        looks = watched(Path(home), minutes)
    names = {
        "resident_mib": "resident memory, MiB",
        "private_mib": "of it no file's, MiB",
        "tree_mib": "memory of the process tree, MiB",
        "files": "open files",
    }
    names |= {"shared_files": "files of shared memory", "shared_mib": "shared memory, MiB"}
    rows = [
        Row(
            subject=f"train, {minutes:.0f} minutes",
            what=names.get(name, name),
            tried=1,
            survived=int(ok),
            lost=int(not ok),
            outcome=f"{early:.1f} in the second quarter, {late:.1f} in the last",
        )
        for name, (early, late, ok) in flat(looks).items()
    ]
    series = [asdict(one) for one in looks[:: max(1, len(looks) // 60)]]
    told = f"python benchmarks/trust/soak.py --minutes {options.minutes:g}"
    figures = {"epochs": looks[-1].epochs, "samples": ROWS, "looks": series}
    print(write("soak", rows, command=told, seconds=60 * minutes, small=options.small, **figures))


if __name__ == "__main__":
    main()
