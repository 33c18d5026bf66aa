"""The commands that are disturbed, on some listings of the catalogue: how they are called, what they make."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset as wds

from clip_negatives import catalogue

PAIRS, TESTED = 128, 32
"""Pairs that are trained on, and that a comparison measures on."""

A_TAR = 16
"""Pairs of a tar."""

Content = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """Hold a command.

    Attributes:
        name: of the command, and of its data where they are no csv.
        line: returns the command line, given the folder that it may write and that of the data.
        content: returns what it made in a folder, in a form that equals that of another run where the results do.
        finished: pattern of files that are finished work before the whole is: they are to stay as they are.
        other: options that make it another run, with other results.
        ranks: options without which several processes cannot share it; None where they cannot.
        passing: bytes on the disk that it needs for a while, beside those of its results.
    """

    name: str
    line: Callable[[Path, Path], list[str]]
    content: Callable[[Path], Content]
    finished: str
    other: tuple[str, ...]
    ranks: tuple[str, ...] | None = ()
    passing: int = 0

    @property
    def command(self) -> str:
        """Return the command."""
        return self.name.partition(" ")[0]

    @property
    def tars(self) -> bool:
        """Tell whether its data are tars."""
        return self.name.endswith(" tars")

    @property
    def in_parts(self) -> bool:
        """Tell whether its finished work is parts, that go when the whole is there."""
        return self.finished.startswith(".")

    def done(self, folder: Path) -> dict[str, int]:
        """Return the files of finished work with the time of their last change."""
        found = [file for file in folder.glob(self.finished) if not any(part.endswith(".partial") for part in file.parts)]
        return {str(file): file.stat().st_mtime_ns for file in found}


def write_data(folder: Path) -> None:
    """Write csv files with pairs to train on and to measure on, and their images; those to train on as tars too."""
    whole = catalogue.load("train")
    keys, texts, items = (whole.column(name) for name in ("key", "text", "item"))
    rows = sorted(range(len(whole)), key=lambda row: (items[row], row))[: PAIRS + TESTED]
    (folder / "images").mkdir(parents=True)
    for name, some in (("train", rows[:PAIRS]), ("test", rows[PAIRS:])):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(["filepath", "title", "item"])
            for row in some:
                whole.image(row).save(folder / "images" / f"{keys[row]}.png")
                writer.writerow([folder / "images" / f"{keys[row]}.png", texts[row], items[row]])
    for first in range(0, PAIRS, A_TAR):
        samples = []
        for row in rows[first : first + A_TAR]:
            image = (folder / "images" / f"{keys[row]}.png").read_bytes()
            described = json.dumps({"item": items[row]}).encode()
            samples.append({"__key__": keys[row], "png": image, "txt": texts[row].encode(), "json": described})
        write_tar(folder / f"train-{first // A_TAR:02d}.tar", samples)


def write_tar(file: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write samples as webdataset has them, keys that begin with two underscores but for their own left out."""
    with wds.TarWriter(str(file), encoder=False, mtime=0) as tar:
        for sample in samples:
            parts = {name: part for name, part in sample.items() if not name.startswith("__")}
            tar.write({"__key__": sample["__key__"], **parts})


def digest(file: Path) -> str:
    """Return that of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _without(table: Mapping[str, Any], *names: str) -> Content:
    return {name: value for name, value in table.items() if name not in names}


def _prepare(folder: Path, data: Path) -> list[str]:
    how = ["--group-column", "item", "--image-encoder", "pixels:dim=16", "--text-encoder", "tfidf:dim=16"]
    clusterers = ["--clusterer", "kmeans:n_clusters=16", "--text-clusterer", "parallel_kmeans:n_clusters=8"]
    return ["prepare", str(data / "train.csv"), str(folder / "out"), *how, *clusterers]


def _prepare_tars(folder: Path, data: Path) -> list[str]:
    tars = f"{data}/train-{{00..{PAIRS // A_TAR - 1:02d}}}.tar"
    return [tars if word == str(data / "train.csv") else word for word in _prepare(folder, data)]


def _clusters(folder: Path) -> Content:
    files: Content = {file.name: digest(file) for file in sorted((folder / "out").iterdir())}
    return {**files, "manifest.json": _without(json.loads((folder / "out" / "manifest.json").read_text()), "created")}


def _generate(folder: Path, data: Path) -> list[str]:
    clusters = folder / "clusters" if (folder / "clusters").exists() else data / "clusters"
    return ["generate", str(clusters), "--output", str(folder / "pairs.parquet"), "--per-image", "2"]


def _pairs(folder: Path) -> Content:
    return {"pairs.parquet": digest(folder / "pairs.parquet")}


EPOCHS = 3
TRAINING = ["--dataset-type", "csv", "--model", "clip-negatives-tiny", "--batch-size", "64", "--lr", "4e-3", "--warmup", "2"]
TRAINING += ["--workers", "0", "--precision", "fp32"]


def _train(folder: Path, data: Path) -> list[str]:
    where = ["--logs", str(folder / "logs"), "--name", "run", "--resume", "latest", "--epochs", str(EPOCHS)]
    clusters = folder / "clusters" if (folder / "clusters").exists() else data / "clusters"
    return ["train", "--clusters", str(clusters), "--", "--train-data", str(data / "train.csv"), *TRAINING, *where]


def _checkpoints(folder: Path) -> Content:
    return {file.name: digest(file) for file in sorted((folder / "logs" / "run" / "checkpoints").glob("*.pt"))}


def _compare(folder: Path, data: Path) -> list[str]:
    how = ["--methods", "in_batch", "--seeds", "1", "--group-column", "item", "--clusterer", "kmeans:n_clusters=16"]
    where = ["--output", str(folder / "out"), "--test-data", str(data / "test.csv")]
    training = ["--train-data", str(data / "train.csv"), *TRAINING, "--epochs", "2", "--save-frequency", "1"]
    return ["compare", *where, *how, "--", *training]


MEASURED = ("seconds_per_step", "train_seconds", "peak_memory_mib", "clusters")
"""What no two runs have in common: time, memory, the folder of the cache."""


def _comparison(folder: Path) -> Content:
    found = json.loads((folder / "out" / "results.json").read_text())
    for file in ("ranks.png", "report.html"):
        if not (folder / "out" / file).stat().st_size:
            raise ValueError(f"Expected a whole {file}, got an empty one.")
    return {"runs": [_without(run, *MEASURED) for run in found["runs"]], "methods": sorted(found["summaries"])}


SUBJECTS = {
    one.name: one
    for one in (
        Subject("prepare", _prepare, _clusters, ".out.features/*/*/record.json", ("--image-encoder", "pixels:dim=8")),
        Subject("prepare tars", _prepare_tars, _clusters, ".out.features/*/*/record.json", ("--image-encoder", "pixels:dim=8")),
        Subject("generate", _generate, _pairs, ".pairs.parquet.parts/*.parquet", ("--seed", "7")),
        Subject("train", _train, _checkpoints, "logs/run/checkpoints/*.pt", (), ("--dist-backend", "gloo")),
        Subject(
            "compare", _compare, _comparison, "out/runs/*/result.json", ("--image-encoder", "pixels:dim=8"), None, 170_000_000
        ),
    )
}


def copied(source: Path, target: Path, *, images: bool = True) -> Path:
    """Copy the data, times of change included, with paths of images that are in the copy."""
    shutil.copytree(source, target)
    for name in ("train", "test"):
        file = target / f"{name}.csv"
        if images:
            file.write_text(file.read_text().replace(f"{source}/images", f"{target}/images"))
    return target


def with_options(line: list[str], options: Sequence[str]) -> list[str]:
    """Return a command line with other options of ours in the place of those of the same names."""
    kept = list(line)
    for name in options[::2]:
        while name in kept:
            del kept[kept.index(name) : kept.index(name) + 2]
    return [kept[0], *options, *kept[1:]]
