"""Rates of what stands between clusters and training, for docs/scale.md: python benchmarks/scale/rates.py [--small].

Clusters folders of N made-up samples in tars of 10,000: what labels, pairs, new shards and the plan of an epoch take, in
samples a second and in memory of the process. Each step runs in a process of its own, with one thread, on this disk; rates
are by the seconds of the processor. Memory is what a process has of its own (not what it maps from files) beyond what it had
before the step, sampled each 20 ms.

The result goes to ``benchmarks/results/<machine>/scale-rates.json``, of ``--small`` to ``.benchmarks/<machine>/``.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from run import machine

from clip_negatives.artifacts import SAMPLES, write_clusters_of
from clip_negatives.atomic import replaced_file
from clip_negatives.generate import generate
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.labels import read_labels, write_labels
from clip_negatives.registry import create
from clip_negatives.reshard import reshard
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import similarities

ROOT = Path(__file__).resolve().parents[2]
SHARD = 10_000
"""Samples of a tar."""

SIZES: dict[str, dict[str, Any]] = {
    "full": {"labels": [10**5, 10**6], "plan": [10**6, 10**7], "reshard": [20_000, 40_000], "many": [20_000, 100_000]},
    "small": {"labels": [2000], "plan": [20_000], "reshard": [400], "many": [300]},
}
IMAGE_BYTES = 8000
"""Of a made-up image, in tars that are written anew."""

DIM = 64
"""Of centroids."""


def main() -> None:
    """Measure every step at every size, and write the result file."""
    small = "--small" in sys.argv
    sizes, shard = SIZES["small" if small else "full"], 100 if small else SHARD
    (ROOT / ".benchmarks").mkdir(exist_ok=True)
    steps = [(step, n) for kind, step in STEPS.items() for n in sizes[kind]]
    rows = []
    for step, n in steps:
        with tempfile.TemporaryDirectory(dir=ROOT / ".benchmarks") as home:
            rows += _alone(step, Path(home), n, shard)
        print(*rows[-1:], flush=True)
    folder = (ROOT / ".benchmarks" if small else ROOT / "benchmarks" / "results") / machine()
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_file(folder / "scale-rates.json") as partial:
        partial.write_text(json.dumps({"shard": shard, "load": os.getloadavg()[0], "rows": rows}, indent=1) + "\n")


def _alone(step: Callable[..., list[dict[str, Any]]], home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Run a step in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_one_thread, (step, home, n, shard))


def _one_thread(step: Callable[..., list[dict[str, Any]]], home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return step(home, n, shard)


def measured(name: str, n: int, work: Callable[[], Any], **more: Any) -> dict[str, Any]:
    """Do some work on n samples and return what it took."""
    ended, before = threading.Event(), _own_memory()
    peak = [before]

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], _own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    ended.set()
    watcher.join()
    memory = (max(peak[0], _own_memory()) - before) / 2**20
    return {"step": name, "n": n, "seconds": seconds, "cpu_seconds": cpu, "per_second": n / cpu, "mib": memory, **more}


def _own_memory() -> int:
    """Return the bytes of this process that are not mapped from files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def clustering(n: int, k: int, seed: int) -> Clustering:
    """Return a clustering of n samples whose clusters are of uneven sizes."""
    generator = torch.Generator().manual_seed(seed)
    uneven = torch.multinomial(torch.linspace(1, 4, k), n - k, replacement=True, generator=generator)
    labels = torch.cat([torch.arange(k), uneven])[torch.randperm(n, generator=generator)]
    return Clustering(labels, F.normalize(torch.randn(k, DIM, generator=generator), dim=1))


def default_k(n: int) -> int:
    """Return the number of clusters that kmeans takes by itself."""
    return round(4 * n**0.5)


def write_folder(home: Path, n: int, shard: int) -> Path:
    """Write a clusters folder of n samples in tars, by parts."""
    file = home / SAMPLES
    schema = pa.schema([("key", pa.string()), ("text", pa.string()), ("shard", pa.string())])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, n, shard):
            rows = range(start, min(n, start + shard))
            columns = [
                [f"{row:09d}" for row in rows],
                [f"a text of some length that says what sample {row} shows" for row in rows],
            ]
            writer.write_table(pa.table([*columns, [str(home / f"{start // shard:06d}.tar")] * len(rows)], schema=schema))
    sides = [clustering(n, default_k(n), seed) for seed in range(2)]
    write_clusters_of(home / "clusters", sides[0], sides[1], [file], {"data": "made up"})
    return home / "clusters"


def labels_and_pairs(home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Write labels, look all of them up, and write pairs."""
    clusters = write_folder(home, n, shard)
    k = default_k(n)
    rows = [measured("labels", n, lambda: write_labels(clusters, home / "labels"), clusters=k)]

    def look_up() -> None:
        shards = read_labels(home / "labels").shards
        for number in range(-(-n // shard)):
            found = shards.of(str(home / f"{number:06d}.tar"))
            for row in range(number * shard, min(n, (number + 1) * shard)):
                found[f"{row:09d}"]

    rows.append(measured("look up labels", n, look_up, clusters=k))
    rows.append(measured("generate", n, lambda: generate(clusters, home / "pairs.parquet"), clusters=k))
    return rows


def plan(home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Plan an epoch of batches of 4096 (of small data 64)."""
    sides = [clustering(n, default_k(n), seed) for seed in range(2)]
    clusters = Clusters(sides[0], sides[1], **similarities(*sides))
    sampler = create("negative_sampler", "cluster_similarity", SamplingContext(n, 4096 if n > 10**5 else 64, clusters=clusters))
    return [measured("plan of an epoch", n, lambda: sampler.planned(0), clusters=default_k(n))]


def shards_anew(home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Write tars of made-up images anew."""
    image = np.random.default_rng(0).bytes(IMAGE_BYTES)
    for start in range(0, n, shard):
        with tarfile.open(home / f"{start // shard:06d}.tar", "w") as tar:
            for row in range(start, min(n, start + shard)):
                for name, data in ((f"{row:09d}.jpg", image), (f"{row:09d}.txt", b"a text")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    clusters = write_folder(home, n, shard)
    last = (n - 1) // shard
    tars = str(home / f"{{000000..{last:06d}}}.tar")
    made = measured(
        "reshard", n, lambda: reshard(tars, clusters, home / "new", samples_per_shard=shard), image_bytes=IMAGE_BYTES
    )
    return [made]


def many_clusters(home: Path, k: int, shard: int) -> list[dict[str, Any]]:
    """Find the nearest of k clusters, and compose and weigh batches by those lists."""
    n = 4 * k
    sides = [clustering(n, k, seed) for seed in range(2)]
    found: dict[str, Any] = {}
    rows = [measured("similarities of two sides", k, lambda: found.update(similarities(*sides)))]
    clusters = Clusters(sides[0], sides[1], **found)
    size = min(4096, n // 4)
    sampler = create("negative_sampler", "cluster_similarity", SamplingContext(n, size, clusters=clusters))
    rows.append(measured("plan of an epoch by lists", n, lambda: sampler.planned(0), clusters=k))
    terms = create("loss_weighting", "weighted_infonce")(clusters)
    index = torch.randperm(n, generator=epoch_generator(0, 0))[:size]
    from clip_negatives.listed import with_dense_tables

    rows.append(measured("tables of a batch by lists", size, lambda: with_dense_tables(terms.take(index), None), clusters=k))
    return rows


STEPS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "labels": labels_and_pairs,
    "plan": plan,
    "reshard": shards_anew,
    "many": many_clusters,
}

if __name__ == "__main__":
    main()
