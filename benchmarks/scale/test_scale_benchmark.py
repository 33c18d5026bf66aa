"""The measurements of scale run at small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def rows_of(script: str, result: str) -> list[dict[str, Any]]:
    """Run a script at small size, and return the rows of its result file."""
    command = [sys.executable, str(HERE / script), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (HERE.parents[1] / ".benchmarks").glob(f"*/{result}")
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def test_rates() -> None:
    """Every step is measured at every size."""
    rows = rows_of("rates.py", "scale-rates.json")
    assert {row["step"] for row in rows} >= {"labels", "look up labels", "generate", "reshard", "plan of an epoch"}
    assert all(row["per_second"] > 0 for row in rows)


def test_tasks() -> None:
    """Time, memory and traffic of each command are measured."""
    rows = rows_of("tasks.py", "scale-tasks.json")
    assert [row["step"] for row in rows] == ["encode", "centroids", "assign", "labels of tasks"]
    assert all(row["cpu_seconds"] > 0 for row in rows)
    assert all(row["requests"] > 0 and row["bytes_read"] > 0 for row in rows[:3])


def test_memory() -> None:
    """What a sample takes in memory is measured for each data set, and for the plan of `reshard`."""
    rows = rows_of("memory.py", "scale-memory.json")
    assert [bool(row.get("process")) for row in rows] == [True, True, True, False]
    assert rows[-1]["peak"] > 0


def test_same_files() -> None:
    """`prepare` and the start of a training are measured with and without the comparison."""
    rows = rows_of("same_files.py", "scale-same-files.json")
    assert [row["step"] for row in rows] == ["prepare", "checks before training", "start until the first batch"]
    assert all(row["wall"]["added"] > 0 for row in rows)


def test_given_memory() -> None:
    """Mapped and scaled features take little memory."""
    rows = rows_of("given_memory.py", "scale-given.json")
    assert [row["case"] for row in rows] == ["unit", "scaled"]
    assert all(row["additional_peak_mib"] > 0 for row in rows)


def test_reading() -> None:
    """Every format is read, by this package and by a plain loop."""
    rows = rows_of("reading.py", "scale-reading.json")
    assert [row["format"] for row in rows] == ["csv", "jsonl", "parquet", "imagefolder", "datasets", "webdataset"]
    assert all(row["ratio"] > 0 for row in rows)


def test_overlap() -> None:
    """Images and texts are encoded while a thread reads ahead, without this thread, and from a `DataLoader`."""
    rows = rows_of("overlap.py", "scale-overlap.json")
    images = [f"images, {name}{way}" for name in ("csv", "webdataset") for way in ("", ", not ahead")]
    alone, loader = ["images, encoder", "images, encoder and its transform"], ["images, webdataset, a process of DataLoader"]
    texts = ["texts, encoder", "texts, csv", "texts, webdataset"]
    assert [row["way"] for row in rows] == [*alone, *images, *loader, *texts]
    assert all(row["per_second"] > 0 for row in rows)


def test_streams() -> None:
    """The false negatives of every way to compose batches are counted; a full shuffle of sorted tars has fewer."""
    rows = rows_of("streams.py", "scale-streams.json")
    counts = {(row["data"], row["tars"], row["batch"], row["way"]): row["per_anchor"] for row in rows}
    for data in ("catalogue", "made up"):
        streamed = counts[data, "sorted by topic", 256, "stream of open_clip"]
        assert counts[data, "sorted by topic", 256, "random samples of all"] < streamed
        assert counts[data, "sorted by topic", 256, "sampler on a table"] < streamed
