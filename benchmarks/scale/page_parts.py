"""Parts of docs/scale-plan.md that come from one result file each."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sections import sections, table

from clip_negatives.storage.source_files import DIGESTED_FILES
from clip_negatives.training.same_data import CHECKED_FILES

ABOUT = sections(Path(__file__).parent / "sections.md")


def same_files(file: Path) -> str:
    """Return the cost of the comparison of image files with the clustered ones."""
    result = json.loads(file.read_text())
    rows = [[row["step"], f"{row['wall']['added']:.2f}", f"{row['wall']['ratio']:.3f}"] for row in result["rows"]]
    limits = {"checked": CHECKED_FILES, "digested": DIGESTED_FILES}
    about = ABOUT["same_files"].format(n=result["n_samples"], machine=file.parent.name, **limits)
    return about + table(rows, ["step", "seconds of the comparison", "time with comparison / without"])


def reading(file: Path) -> str:
    """Return the rates of reading each format."""
    result = json.loads(file.read_text())
    names = "format", "ours_per_second", "plain_per_second", "ratio", "lowest_ratio", "ratio_of_fastest"
    rows = [[str(row[name]) for name in names] for row in result["rows"]]
    about = ABOUT["reading"].format(n=result["n_samples"], side=result["side"], machine=file.parent.name)
    return about + table(
        rows, ["format", "samples a second", "of a plain loop", "median ratio", "lowest ratio", "ratio of the fastest runs"]
    )


def overlap(file: Path) -> str:
    """Return the rates of encoding while a thread reads ahead."""
    result = json.loads(file.read_text())
    names = "way", "per_second", "share_by_processor_time", "share", "encoder_thread_ms", "other_threads_ms"
    rows = [[str(row[name]) for name in names] for row in result["rows"]]
    images, texts = result["encoders"]
    about = ABOUT["overlap"].format(
        n=result["n_samples"], side=result["side"], images=images, texts=texts, machine=file.parent.name
    )
    shares, times = ("share by processor time", "share by clock"), ("ms of the encoder's thread", "ms of other threads")
    return about + table(rows, ["samples", "a second", *shares, *times])


def streams(file: Path) -> str:
    """Return the false negatives of batches that are composed in different ways."""
    result = json.loads(file.read_text())
    names = "data", "tars", "processes", "batch"
    figures = {(row["way"], *(row[name] for name in names)): f"{row['per_anchor']:.3f}" for row in result["rows"]}
    ways, cases = dict.fromkeys(way for way, *_ in figures), sorted({tuple(case) for _, *case in figures})
    rows = []
    for data, tars, processes, batch in cases:
        found = [figures.get((way, data, tars, processes, batch), "") for way in ways]
        rows.append([data, tars, f"{processes} x {batch:,}", *found])
    return ABOUT["streams"].format(**result["sizes"]) + table(rows, ["data", "tars", "batch", *ways])


def tasks(file: Path) -> str:
    """Return what each command of independent tasks took, and by which power of the number of pairs it grows."""
    result = json.loads(file.read_text())
    rows, previous = [], dict[str, Mapping[str, Any]]()
    for row in result["rows"]:
        before = previous.get(row["step"])
        powers = [_power(before, row, name) if before else "" for name in ("cpu_seconds", "mib")]
        traffic = [f"{row.get(name, 0) / row['n']:,.0f}" for name in ("bytes_read", "bytes_written")]
        told = [f"{row['cpu_seconds']:.1f}", powers[0], f"{row['mib']:.0f}", powers[1], *traffic, f"{row.get('requests', 0):,}"]
        rows.append([row["step"], f"{row['n']:,}", *told])
        previous[row["step"]] = row
    time, memory = "core seconds", "MiB beyond what was there"
    columns = ["step", "pairs", time, "power", memory, "power", "bytes read a pair", "written a pair", "requests"]
    return ABOUT["tasks"].format(**result) + table(rows, columns)


def _power(before: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    """Return p, where the figure grows like the number of pairs to the power of p."""
    return f"{math.log(row[name] / before[name]) / math.log(row['n'] / before['n']):.2f}"


def memory(file: Path) -> str:
    """Return the memory of a sample."""
    result = json.loads(file.read_text())
    names = "process", "with_workers", "peak"
    rows = [[row["case"], *(f"{row[name]:,.0f}" if name in row else "" for name in names)] for row in result["rows"]]
    about = ABOUT["memory"].format(n=result["rows"][0]["n"], machine=file.parent.name, **result)
    return about + table(rows, ["what", "a process", "with workers", "peak"])


def faults(file: Path) -> str:
    """Return what the commands took on a store of which some requests fail."""
    result = json.loads(file.read_text())
    names = "requests", "failed", "bytes_read", "bytes_written"
    rows = []
    for row in result["rows"]:
        traffic = [f"{row[name] / 1e6:,.0f}" if name.startswith("bytes") else f"{row[name]:,}" for name in names]
        rows.append([row["command"], f"{row['cpu_seconds']:.0f}", *traffic])
    columns = ["command", "core seconds", "requests", "failed", "MB read", "MB written"]
    return ABOUT["faults"].format(**{**result, "n": f"{result['n']:,}", "share": f"{result['share']:.0%}"}) + table(
        rows, columns
    )


PARTS: dict[str, Callable[[Path], str]] = {
    "tasks": tasks,
    "faults": faults,
    "memory": memory,
    "same-files": same_files,
    "reading": reading,
    "overlap": overlap,
    "streams": streams,
}  # by the name of the result file
