"""Result files of the page of benchmarks, from the rows of one machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu.rows import Row, read

RESULTS = Path(__file__).resolve().parents[1] / "results"
SMALL = RESULTS.parents[1] / ".benchmarks"
KINDS = ("loss", "profile", "tiles", "training_step", "kmeans")


def keep(files: Iterable[Path], results: Path | None = None) -> list[Path]:
    """Write a result file of each kind into the folder of the machine, and return the files; the last row of a case counts.

    Rows of a rehearsal go to ``.benchmarks``, which git ignores: they are no results.
    """
    rows = [row for file in files for row in read(file)]
    machines = [row for row in rows if row["key"] == "machine"]
    folders = sorted({row["folder"] for row in machines})
    if not folders:
        raise SystemExit("The files have no rows of a machine. Name the files of bench or kmeans with --done.")
    if len(folders) > 1:
        raise SystemExit(f"The files have rows of several machines: {', '.join(folders)}. Name the files of one with --done.")
    if len({row["rehearsal"] for row in machines}) > 1:
        raise SystemExit("The files have rows of a rehearsal and of a real run. Name the files of one of them with --done.")
    latest = {row["key"]: row for row in rows if row.get("kind") in KINDS and "error" not in row}
    folder = (results or (SMALL if machines[-1]["rehearsal"] else RESULTS)) / machines[-1]["folder"]
    written = []
    for kind in KINDS:
        benchmarks = [entry for row in latest.values() if row["kind"] == kind for entry in _benchmarks(row)]
        if benchmarks:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{kind}.json")
            content = {"machine_info": machines[-1]["information"], "benchmarks": benchmarks}
            written[-1].write_text(json.dumps(content, indent=1) + "\n")
    return written


def _benchmarks(row: Row) -> Iterator[dict[str, Any]]:
    """Yield the entries of a row, as pytest-benchmark writes them: one, or one for each kernel of a profile."""
    figures = {name: value for name, value in row.items() if name not in ("key", "time", "kind", "group", "kernels")}
    for kernel in row.get("kernels", [{}]):
        seconds = kernel.get("microseconds", 0.0) / 1e6 or figures.get("seconds")
        stats = {} if seconds is None else {"stats": {"min": seconds}}
        yield {"group": row["group"], "name": row["key"], **stats, "extra_info": figures | kernel}
