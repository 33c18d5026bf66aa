"""What is the same in every run: python benchmarks/trust/determinism.py [--small].

Real listings are prepared once. Then several processes, each new, with another number of threads and another seed of Python's
hashes, compose the batches of every sampler (also those of 2 and 3 processes that train together), weigh with every weighting,
cluster with every clusterer, and train by open_clip's own loop with 0 and with 2 workers. What docs/determinism.md promises is
compared bit by bit; what it does not promise is noted beside it, under ``not_promised``, as it was found.

The result goes to ``benchmarks/results/<machine>/trust-determinism.json``; that of ``--small``, which does not train, to
``.benchmarks/<machine>/``.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import Row, write
from torch import Tensor

from clip_negatives import catalogue, read_clusters, registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.dataset import open_pairs
from clip_negatives.extra_texts import Captions
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.interfaces import SamplingContext
from clip_negatives.prepare import prepare
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.steps import value

ROWS, STEP, EPOCHS = 384, 48, 2
"""Listings, samples of a step of all processes together, and epochs whose batches are composed."""

PROCESSES = (1, 2, 3)
"""Numbers of processes that share a step."""

Found = dict[str, str]
"""Digests by what they are of."""


def write_listings(folder: Path) -> Path:
    """Write real listings as csv."""
    exported = catalogue.export(folder / "listings", split="test", format="csv") / "test.csv"
    file = folder / "train.csv"
    with exported.open(encoding="utf-8") as source, file.open("w", newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(source, delimiter="\t"))[: ROWS + 1]
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(rows)
    return file


def digest(told: object) -> str:
    """Return a short digest of what something is written as."""
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def batches(folder: ClustersFolder) -> Found:
    """Return digests of the steps of every sampler, by the number of processes that share them."""
    found = {}
    for item in registry.default_registry().items("negative_sampler"):
        for world in PROCESSES:
            ranks = [
                SamplingContext(ROWS, STEP // world, rank, world, 1, folder.clusters, captions=Captions(folder.samples))
                for rank in range(world)
            ]
            samplers = [registry.create("negative_sampler", item.name, context) for context in ranks]
            steps = []
            for epoch in range(EPOCHS):
                for sampler in samplers:
                    sampler.set_epoch(epoch)
                steps += [list(itertools.chain(*shares)) for shares in zip(*samplers, strict=True)]
            found[f"batches {item.name} {world}"] = digest(steps)
    return found


def weights() -> Found:
    """Return digests of the loss of a batch by every weighting."""
    blobs = make_blobs(240)
    made = {item.name: item.factory() for item in registry.default_registry().items("loss_weighting")}
    return {f"loss {name}": digest(float(value(weigh(blobs))).hex()) for name, weigh in made.items()}


def clusterings(folder: ClustersFolder) -> Found:
    """Return digests of the labels that every clusterer finds in the images."""
    features = folder.clusters.image_features
    assert features is not None
    made = {item.name: item.factory(n_clusters=24) for item in registry.default_registry().items("clusterer")}
    return {
        f"labels {name}": digest(one.fit(features, generator=epoch_generator(0, 0)).labels.tolist())
        for name, one in made.items()
    }


def training(home: Path, clusters: Path, workers: int, name: str) -> Found:
    """Return digests of the batches and of the losses of two epochs of training."""
    seen: list[Tensor] = []
    arguments = [
        *("--train-data", str(home / "train.csv"), "--dataset-type", "csv", "--model", "clip-negatives-tiny"),
        *("--batch-size", str(STEP), "--epochs", "2", "--workers", str(workers), "--lr", "1e-3", "--warmup", "2"),
        *("--precision", "fp32", "--device", "cpu", "--logs", str(home / "logs"), "--name", f"{name}-{workers}"),
        *("--log-every-n-steps", "1", "--seed", "3"),
    ]
    train(arguments, TrainOptions(clusters=clusters, on_batch=seen.append))
    log = (home / "logs" / f"{name}-{workers}" / "out.log").read_text()
    losses = re.findall(r"Contrastive_loss: (\S+)", log)
    return {f"trained batches {workers}": digest(torch.cat(seen).tolist()), f"trained losses {workers}": digest(losses)}


def child(home: Path, name: str, *, small: bool) -> Found:
    """Return all digests of this process."""
    folder = read_clusters(home / "clusters")
    found = batches(folder) | weights() | clusterings(folder)
    source = open_pairs(str(home / "train.csv"), dataset_type="csv")
    again = prepare(source, home / f"clusters-{name}", progress=False)
    found["prepared"] = digest([again.manifest["files"][file]["sha256"] for file in sorted(again.manifest["files"])])
    for workers in () if small else (0, 2):
        found |= training(home, home / "clusters", workers, name)
    return found


def asked(home: Path, name: str, *, threads: int, hashes: int, small: bool) -> Found:
    """Return the digests of a new process."""
    command = [sys.executable, __file__, "--child", str(home), name, *(["--small"] if small else [])]
    more = {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(hashes), "CLIP_NEGATIVES_CACHE": str(home / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **more})
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(one: Found, other: Found, kind: str) -> tuple[int, int]:
    """Return how many digests of a kind there are, and how many are the same."""
    names = [name for name in one if name.startswith(kind)]
    return len(names), sum(one[name] == other[name] for name in names)


def rows_of(first: Found, again: Found, threads: Found) -> list[Row]:
    """Return how what is promised was kept."""
    rows = []
    kinds = {"batches": "batches of every sampler", "loss": "loss by every weighting", "labels": "labels of every clusterer"}
    kinds |= {
        "prepared": "clusters folder of prepare",
        "trained": "two epochs of training, 0 and 2 workers: batches and losses",
    }
    for kind, subject in kinds.items():
        tried, same = compared(first, again, kind)
        if tried:
            rows.append(Row(subject, "another process, the same seed", tried, same, tried - same, "the same to the bit"))
    tried, same = compared(first, threads, "batches")
    rows.append(Row(kinds["batches"], "two threads for one", tried, same, tried - same, "the same to the bit"))
    names = {name.rpartition(" ")[0] for name in first if name.startswith("batches")}
    for world in PROCESSES[1:]:
        same = sum(first[f"{name} {world}"] == first[f"{name} 1"] for name in names)
        told = f"{world} processes for one, steps of as many samples"
        rows.append(Row(kinds["batches"], told, len(names), same, len(names) - same, "the same steps"))
    if "trained batches 0" in first:
        same = int(first["trained batches 0"] == first["trained batches 2"])
        rows.append(Row("two epochs of training: batches", "2 workers for none", 1, same, 1 - same, "the same batches"))
    return rows


def main() -> None:
    """Compare processes, and write the result file."""
    small = "--small" in sys.argv
    if "--child" in sys.argv:
        home, name = sys.argv[2:4]
        with contextlib.redirect_stdout(sys.stderr):
            found = child(Path(home), name, small=small)
        print(json.dumps(found))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(open_pairs(str(write_listings(home)), dataset_type="csv"), home / "clusters", progress=False)
        first = asked(home, "first", threads=1, hashes=1, small=small)
        again = asked(home, "again", threads=1, hashes=2, small=small)
        threads = asked(home, "threads", threads=2, hashes=1, small=small)
    rows = rows_of(first, again, threads)
    others = {"2 threads for 1": {kind: compared(first, threads, kind) for kind in ("loss", "labels", "prepared", "trained")}}
    if not small:
        same = int(first["trained losses 0"] == first["trained losses 2"])
        others["2 workers for none"] = {"trained losses": (1, same)}
    for row in rows:
        print(row, flush=True)
    print(others)
    command = "python benchmarks/trust/determinism.py"
    print(write("determinism", rows, command=command, seconds=time.perf_counter() - start, small=small, not_promised=others))


if __name__ == "__main__":
    main()
