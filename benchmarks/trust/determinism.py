"""Check what is the same in every run: python benchmarks/trust/determinism.py [--small].

New processes, with other numbers of threads and other hash seeds of Python, compose the batches of every sampler for 1, 2 and 3
processes, compute the loss of every weighting, run every clusterer and `prepare`, and train with 0 and 2 workers. Their results
must be equal where docs/determinism.md promises it. ``--small`` does not train.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
from survival import Row, counts, run_campaign

from clip_negatives import ClustersFolder, Method, SamplingContext, catalogue, read_clusters, registry, sampling
from clip_negatives.batches.extras import Captions
from clip_negatives.dataset import open_pairs
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.weightings import value

ROWS, STEP, EPOCHS = 384, 48, 2  # listings, samples of a step of all processes together, epochs
PROCESSES = (1, 2, 3)  # numbers of processes that share a step
KINDS = {
    "batches": "batches of every sampler",
    "loss": "loss by every weighting",
    "labels": "labels of every clusterer",
    "prepared": "clusters folder of prepare",
    "trained": "two epochs of training, 0 and 2 workers: batches and losses",
}
Results = dict[str, Any]  # by kind, plugin and number of processes or workers


def write_rewrites(file: Path, captions: Captions) -> None:
    """Write a file of further captions, which `redrawn_captions` needs."""
    rows = [{"text": caption, "captions": [f"{caption} {number}" for number in range(2)]} for caption in captions]
    pd.DataFrame(rows).to_json(file, orient="records", lines=True)


def batches(spec: str, world: int, folder: ClustersFolder) -> list[list[int]]:
    """Return the steps that a sampler composes for several processes, each process's share after the other's."""
    run, steps = {"world_size": world, "seed": 1, "captions": Captions(folder.samples)}, []
    contexts = [SamplingContext.of(folder.clusters, STEP // world, rank=rank, **run) for rank in range(world)]
    samplers = [Method(spec).create_sampler(context) for context in contexts]
    for epoch in range(EPOCHS):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        steps += [list(itertools.chain(*shares)) for shares in zip(*samplers, strict=True)]
    return steps


def training(home: Path, workers: int, name: str) -> Results:
    """Return the batches and the losses of a training."""
    ids: list[list[int]] = []
    line = f"--dataset-type csv --model clip-negatives-tiny --batch-size {STEP} --epochs {EPOCHS} --workers {workers} --lr 1e-3"
    line += f" --warmup 2 --precision fp32 --device cpu --name {name} --log-every-n-steps 1 --seed 3"
    arguments = ["--train-data", str(home / "train.csv"), "--logs", str(home), *line.split()]
    train(arguments, TrainOptions(clusters=home / "clusters", on_batch=lambda samples: ids.append(samples.ids.tolist())))
    losses = re.findall(r"Contrastive_loss: (\S+)", (home / name / "out.log").read_text())
    return {f"trained batches {workers}": ids, f"trained losses {workers}": losses}


def all_results(home: Path, name: str, *, small: bool) -> Results:
    """Return all results of this process."""
    folder, results = read_clusters(home / "clusters"), Results()
    for item in registry.default_registry().items():
        if item.kind == "negative_sampler":
            spec = item.name if item.name != "redrawn_captions" else f"{item.name}:file={home / 'rewrites.jsonl'}"
            results |= {f"batches {item.name} {world}": batches(spec, world, folder) for world in PROCESSES}
        elif item.kind == "loss_weighting":
            results[f"loss {item.name}"] = float(value(item.factory()(make_blobs(240)))).hex()
        else:
            clusterer, generator = item.factory(n_clusters=24), sampling.epoch_generator(0, 0)
            results[f"labels {item.name}"] = clusterer.fit(folder.clusters.image_features, generator=generator).labels.tolist()
    files = prepare(open_pairs(str(home / "train.csv")), home / f"clusters-{name}", progress=False).manifest["files"]
    results["prepared"] = {file: entry["sha256"] for file, entry in files.items()}
    for workers in () if small else (0, 2):
        results |= training(home, workers, f"{name}-{workers}")
    return results


def compare(first: Results, again: Results, threads: Results) -> Iterator[Row]:
    """Yield a row for each promise."""

    def row(subject: str, what: str, pattern: str, others: Results, promise: str = "identical to the bit") -> Row:
        same = [others[name] == result for name, result in first.items() if re.match(pattern, name)]
        return counts(subject, what, len(same), same.count(False), promise)

    yield from (row(subject, "another process, the same seed", kind, again) for kind, subject in KINDS.items())
    yield row(KINDS["batches"], "two threads instead of one", "batches", threads)
    for world in PROCESSES[1:]:
        others = {f"{name[:-1]}1": result for name, result in first.items() if name.endswith(str(world))}
        what = f"{world} processes instead of one, steps of as many samples"
        yield row(KINDS["batches"], what, "batches .* 1$", others, "the same steps")
    others = {"trained batches 0": first.get("trained batches 2", "")}
    yield row("two epochs of training: batches", "2 workers instead of none", "trained batches 0", others, "the same batches")


def rows(*, small: bool) -> list[Row]:
    """Return the rows of three processes that run beside each other."""
    with tempfile.TemporaryDirectory() as place:
        home, processes = Path(place), []
        exported = catalogue.export(home / "listings", split="test", format="csv") / "test.csv"
        pd.read_csv(exported, sep="\t", nrows=ROWS, keep_default_na=False).to_csv(home / "train.csv", sep="\t", index=False)
        folder = prepare(open_pairs(str(home / "train.csv")), home / "clusters", progress=False)
        write_rewrites(home / "rewrites.jsonl", Captions(folder.samples))
        for name, threads, hashes in (("first", "1", "1"), ("again", "1", "2"), ("threads", "2", "1")):
            settings = {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": hashes, "CLIP_NEGATIVES_CACHE": str(home / "cache")}
            with mock.patch.dict(os.environ, settings):
                processes.append(ProcessPoolExecutor(1, get_context("spawn")).submit(all_results, home, name, small=small))
        return [row for row in compare(*(process.result() for process in processes)) if row["tried"]]


if __name__ == "__main__":
    run_campaign("determinism", rows)
