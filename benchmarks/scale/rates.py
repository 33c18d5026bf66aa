"""Measure labels, pairs, new shards and plans of an epoch: python benchmarks/scale/rates.py [--small] [STEP ...].

Without a step (labels, plan, reshard, many), all are measured; otherwise, the result file keeps the rows of the others. The
clusters folders have N made-up samples in tars of 10,000. Each step runs in a process of its own with one thread. Rates are by
processor time. Memory is the peak above the memory before the step, without mapped files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import webdataset
from counted_store import counts
from run import result_file, write_json
from watch import watched

from clip_negatives import Method
from clip_negatives.clustering.similarity import similarities
from clip_negatives.interfaces import Clustering, Clusters, SamplingContext
from clip_negatives.pipelines.generate import generate
from clip_negatives.pipelines.reshard import reshard
from clip_negatives.sampling import epoch_generator
from clip_negatives.storage.clusters_folder import write_clusters_from_files
from clip_negatives.storage.labels_folder import read_labels, write_labels
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.ownership import claim_work

ROOT = Path(__file__).resolve().parents[2]
SHARD = 10_000  # samples of a tar
RESHARDED = 500  # samples of a tar that is resharded
SIZES: dict[str, dict[str, Any]] = {
    "full": {"labels": [10**5, 10**6], "plan": [10**6, 10**7], "reshard": [20_000, 40_000], "many": [20_000, 100_000]},
    "small": {"labels": [2000], "plan": [20_000], "reshard": [400], "many": [300]},
}
IMAGE_BYTES = 8000  # size of a made-up image
DIM = 64  # size of the centroids


def main() -> None:
    """Measure every step at every size and write the result file."""
    small, chosen = "--small" in sys.argv, {*sys.argv[1:]} & STEPS.keys() or STEPS.keys()
    sizes, shard = SIZES["small" if small else "full"], 100 if small else SHARD
    (ROOT / ".benchmarks").mkdir(exist_ok=True)
    steps = [(STEPS[kind], n) for kind in STEPS if kind in chosen for n in sizes[kind]]
    rows = []
    for step, n in steps:
        with tempfile.TemporaryDirectory(dir=ROOT / ".benchmarks") as home:
            rows += alone(step, Path(home), n, shard)
        print(*rows[-1:], flush=True)
    file = result_file("scale-rates.json", small=small)
    names = {row["step"] for row in rows}
    kept = json.loads(file.read_text())["rows"] if chosen != STEPS.keys() and file.exists() else []
    rows = [row for row in kept if row["step"] not in names] + rows
    write_json(file, {"shard": shard, "load": os.getloadavg()[0], "rows": rows})


def alone(step: Callable[..., list[dict[str, Any]]], home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Run a step in a process of its own with one thread."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:
        return pool.apply(step, (home, n, shard))


def measured(name: str, n: int, work: Callable[[], Any], **more: Any) -> dict[str, Any]:
    """Do some work on n samples and return its time and memory."""
    _, seconds, cpu, first, peak = watched(work)
    return {"step": name, "n": n, "seconds": seconds, "cpu_seconds": cpu, "per_second": n / cpu, "mib": peak - first, **more}


def clustering(n: int, k: int, seed: int) -> Clustering:
    """Return a clustering of n samples whose clusters are of uneven sizes."""
    generator = torch.Generator().manual_seed(seed)
    uneven = torch.multinomial(torch.linspace(1, 4, k), n - k, replacement=True, generator=generator)
    labels = torch.cat([torch.arange(k), uneven])[torch.randperm(n, generator=generator)]
    return Clustering(labels, F.normalize(torch.randn(k, DIM, generator=generator), dim=1))


def default_k(n: int) -> int:
    """Return the default number of clusters of kmeans."""
    return round(4 * n**0.5)


def write_folder(home: Path, n: int, shard: int) -> Path:
    """Write a clusters folder of n samples in tars, by parts."""
    work = home / "work"
    claim_work(work)
    file = work / SAMPLES
    schema = pa.schema([("key", pa.string()), ("text", pa.string()), ("shard", pa.string())])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, n, shard):
            rows = range(start, min(n, start + shard))
            keys, texts = [f"{row:09d}" for row in rows], [f"a text that says at some length what is in {row}" for row in rows]
            tars = [str(home / f"{start // shard:06d}.tar")] * len(rows)
            writer.write_table(pa.table([keys, texts, tars], schema=schema))
    sides = [clustering(n, default_k(n), seed) for seed in range(2)]
    write_clusters_from_files(home / "clusters", sides, [file], {"data": "made up"})
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
    """Plan an epoch of batches of 4096, or of 64 for small data."""
    sides = [clustering(n, default_k(n), seed) for seed in range(2)]
    clusters = Clusters(sides[0], sides[1], **similarities(*sides))
    sampler = Method().create_sampler(SamplingContext.of(clusters, 4096 if n > 10**5 else 64))
    return [measured("plan of an epoch", n, lambda: sampler.planned(0), clusters=default_k(n))]


def shards_anew(home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Reshard tars of made-up images, on a disk and from one object store to another; count openings, requests and bytes."""
    shard = min(shard, RESHARDED)
    image = np.random.default_rng(0).bytes(IMAGE_BYTES)
    for start in range(0, n, shard):
        with webdataset.TarWriter(str(home / f"{start // shard:06d}.tar"), encoder=False) as tar:
            for row in range(start, min(n, start + shard)):
                tar.write({"__key__": f"{row:09d}", "jpg": image, "txt": b"a text"})
    clusters = write_folder(home, n, shard)
    tars = str(home / f"{{000000..{(n - 1) // shard:06d}}}.tar")
    size = sum(file.stat().st_size for file in home.glob("*.tar"))
    data = {"image_bytes": IMAGE_BYTES, "tars": -(-n // shard), "data_bytes": size}
    opened = Counter[str]()
    sys.addaudithook(lambda event, about: opened.update([event]) if event == "open" and str(home) in str(about[0]) else None)
    work = partial(reshard, clusters_folder=clusters, samples_per_shard=shard)
    rows = [measured("reshard", n, partial(work, tars, output=home / "new"), **data)]
    rows[0]["openings"] = opened["open"]
    stored = partial(work, f"counted://{tars}", output=f"counted://{home}/stored", work_folder=home / "waiting")
    rows.append(measured("reshard in an object store", n, stored, **data) | counts)
    return rows


def many_clusters(home: Path, k: int, shard: int) -> list[dict[str, Any]]:
    """List the nearest of k clusters, and compose and weight batches by these lists."""
    n = 4 * k
    sides = [clustering(n, k, seed) for seed in range(2)]
    found: dict[str, Any] = {}
    rows = [measured("similarities of two sides", k, lambda: found.update(similarities(*sides)))]
    clusters = Clusters(sides[0], sides[1], **found)
    size = min(4096, n // 4)
    sampler = Method().create_sampler(SamplingContext.of(clusters, size))
    rows.append(measured("plan of an epoch by lists", n, lambda: sampler.planned(0), clusters=k))
    terms = Method().create_weighting()(clusters)
    index = torch.randperm(n, generator=epoch_generator(0, 0))[:size]
    from clip_negatives.losses.sparse_tables import with_dense_tables

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
