"""Measure what the comparison of files costs: python benchmarks/scale/same_files.py [--small].

`prepare` of a csv of 100,000 rows runs without the sizes and digests of its images; then the part that was left out runs alone.
The start of a training is measured in the same way: our checks alone, and all up to the first batch, imports included.
The image files are hard links to images of the catalogue. The ratio is (without + added) / without, of wall-clock time and of
processor time.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

N, SMALL, FILES = 100_000, 2_000, 500  # rows, rows of a small run, and different images


def main() -> None:
    """Measure, and write the result file."""
    from conftest import machine
    from run import result_file, write_json

    small = "--small" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), SMALL if small else N)
        rows = [measure_prepare(data, Path(folder) / "clusters"), *measure_start(data, Path(folder))]
    result = {
        **machine(),
        "threads_of_a_process": 1,
        "measured": "seconds without the comparison, seconds that it adds, and (without + added) / without",
        "n_samples": SMALL if small else N,
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    print(f"Results: {write_json(result_file('scale-same-files.json', small=small), result)}")


def write_data(folder: Path, n: int) -> Path:
    """Write a csv of n rows and as many image files, hard links to `FILES` images."""
    from clip_negatives import catalogue

    listings = catalogue.load("train")
    texts = listings.column("text")
    images = folder / "images"
    images.mkdir()
    for row in range(FILES):
        listings.image(row).save(folder / f"{row}.png")
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "title"])
        for row in range(n):
            os.link(folder / f"{row % FILES}.png", images / f"{row}.png")
            writer.writerow([images / f"{row}.png", f"{texts[row % FILES]} {row // FILES}"])
    return folder / "pairs.csv"


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the wall-clock and the processor time of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def row_of(name: str, without: tuple[float, float], added: tuple[float, float]) -> dict[str, Any]:
    """Return a row of the result file."""
    row: dict[str, Any] = {"step": name}
    for kind, base, more in zip(("wall", "processor"), without, added, strict=True):
        row[kind] = {"without": round(base, 3), "added": round(more, 3), "ratio": round((base + more) / base, 4)}
    return row


def measure_prepare(data: Path, output: Path) -> dict[str, Any]:
    """Measure `prepare` without sizes and digests, and the sizes and digests of the same images."""
    import pyarrow as pa

    from clip_negatives import Recipe, read_clusters, write_clusters
    from clip_negatives.dataset import open_table
    from clip_negatives.dataset.stored_images import ImageFiles
    from clip_negatives.dataset.table_parts import TablePart
    from clip_negatives.pipelines.prepare import prepare_folder
    from clip_negatives.storage.clusters_parts import BYTES
    from clip_negatives.storage.source_files import DIGESTED_FILES, SourceFile, evenly_spread

    recipe = Recipe(clusterer="kmeans:n_clusters=64")
    bare = output.with_name("bare")
    with (
        mock.patch.object(ImageFiles, "size", return_value=0),
        mock.patch.object(TablePart, "source_files", return_value=[]),
    ):
        without = seconds(lambda: prepare_folder(open_table(data), bare, recipe, progress=False))
    source = open_table(data)
    sizes, sources = list[Any](), list[SourceFile]()

    def compute() -> None:
        for part in source.parts():
            sources.extend(part.source_files())
            sizes.extend(map(source.stored.size, range(part.start, part.stop)))

    added = seconds(compute)
    folder = read_clusters(bare)  # the clusters of `measure_start` are these with the sizes
    samples = folder.samples.set_column(folder.samples.column_names.index(BYTES), BYTES, pa.array(sizes, pa.int64()))
    kept = [sources[place] for place in evenly_spread(len(sources), DIGESTED_FILES)]
    write_clusters(output, folder.clusters, samples, folder.manifest, kept)
    return row_of("prepare", without, added)


class FirstBatchError(Exception):
    """Ends a training at its first batch."""


def measure_start(data: Path, folder: Path) -> list[dict[str, Any]]:
    """Measure the start of a training without the comparison, and the comparison."""
    began = time.perf_counter(), time.process_time()
    from clip_negatives.integrations.open_clip import command_line, preflight, train
    from clip_negatives.integrations.open_clip.adapter import installed
    from clip_negatives.integrations.open_clip.train_options import TrainOptions

    installed()
    imports = time.perf_counter() - began[0], time.process_time() - began[1]
    options = TrainOptions(clusters=folder / "clusters")
    arguments = f"--train-data {data} --dataset-type csv --model clip-negatives-tiny --logs {folder / 'logs'}".split()
    settings = shlex.split("--epochs 1 --workers 0 --device cpu --batch-size 64 --warmup 1 --name run")

    def start() -> None:
        args = command_line.check_arguments(arguments, options)
        clusters = preflight.first_folder(args, options)
        preflight.try_plugins(clusters, args, options)
        preflight.warn_of_newer_data(clusters, args)

    def first_batch(samples: Any) -> None:
        raise FirstBatchError

    def train_one_batch() -> None:
        with suppress(FirstBatchError):
            train([*arguments, *settings], TrainOptions(clusters=folder / "clusters", on_batch=first_batch))

    args = command_line.check_arguments(arguments, options)
    clusters = preflight.first_folder(args, options)
    with mock.patch.object(preflight, "check_same_files"):
        without = seconds(start)
        whole = seconds(train_one_batch)
    added = seconds(lambda: preflight.check_same_files(clusters, args))
    whole = whole[0] + imports[0], whole[1] + imports[1]
    return [row_of("checks before training", without, added), row_of("start until the first batch", whole, added)]


if __name__ == "__main__":
    main()
