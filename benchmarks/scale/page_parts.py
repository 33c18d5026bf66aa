"""Parts of docs/scale-plan.md that come from one result file each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

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
    columns = [f"{data}, tars {tars}, {processes} x {batch:,}" for data, tars, processes, batch in cases]
    rows = [[way, *(figures.get((way, *case), "") for case in cases)] for way in ways]
    return ABOUT["streams"].format(**result["sizes"]) + table(rows, ["batches from", *columns])


PARTS: dict[str, Callable[[Path], str]] = {
    "same-files": same_files,
    "reading": reading,
    "overlap": overlap,
    "streams": streams,
}  # by the name of the result file
