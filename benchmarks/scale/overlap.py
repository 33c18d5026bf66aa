"""Measure whether reading keeps up with an encoder: python benchmarks/scale/overlap.py [--small].

The images and captions of `reading.py` are encoded by a small network of timm and by MiniLM, as `prepare` and `encode` do it.
The encoder has one thread. Each share is a rate divided by the encoder's own rate, on prepared images or texts in memory: the
median of several rounds, each of which runs all ways in changing order. Shares by wall-clock time need two free cores. Shares
by processor time do not: they count what the encoder's thread does besides encoding, but not its waiting.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timm
import torch
from conftest import machine
from reading import SIDE, write_data
from run import result_file, write_json
from torch.utils.data import DataLoader, IterableDataset

from clip_negatives.dataset import Part, Sample, open_pairs
from clip_negatives.dataset.images import limited_batches
from clip_negatives.encoders import Encoder, image_encoder, text_encoder
from clip_negatives.encoders.encoder import BATCH, batched
from clip_negatives.features import encoding
from clip_negatives.features.store import PartStore
from clip_negatives.storage.ownership import claim_work

N, SMALL, ROUNDS = 256, 64, 5  # samples, samples of a small run, rounds
IMAGES = "mobilenetv3_small_050"  # a model of timm; its weights are random, which does not change its rate
TEXTS = {"full": "minilm", "small": "hashing"}
FORMATS = {"csv": "pairs.csv", "webdataset": "pairs.tar"}

Work = Callable[[], Any]
CLOCKS = time.perf_counter, time.thread_time, time.process_time


def main() -> None:
    """Measure, and write the result file."""
    small = "--small" in sys.argv
    n = SMALL if small else N
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), n)
        weights = Path(folder) / "weights.pth"
        torch.save(timm.create_model(IMAGES).state_dict(), weights)
        texts = TEXTS["small" if small else "full"]
        runs = Runs(Path(folder), f"timm:{IMAGES}@{weights}", text_encoder(texts))
        rows = [row for ways in (runs.image_ways(), runs.text_ways()) for row in measure(ways, n, 1 if small else ROUNDS)]
    result = {
        **machine(),
        "measured": "samples per second, and this rate / the rate of the encoder on prepared samples in memory",
        "n_samples": n,
        "side": SIDE,
        "encoders": [f"timm:{IMAGES}", texts],
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    print(f"Results: {write_json(result_file('scale-overlap.json', small=small), result)}")


class Runs:
    """Ways to encode the same data."""

    def __init__(self, folder: Path, spec: str, texts: Encoder) -> None:
        self.folder, self.spec, self.images, self.texts, self.n_runs = folder, spec, image_encoder(spec), texts, 0
        self.parts = {name: open_pairs(folder / file).parts() for name, file in FORMATS.items()}
        samples = [sample for part in self.parts["csv"] for sample in part.samples()]
        self.pictures, self.captions = [sample.image for sample in samples], [sample.text for sample in samples]

    def image_ways(self) -> dict[str, Work]:
        """Return the ways to encode the images, the encoder alone first."""
        prepared = [self.images.prepare(batch) for batch in batched(self.pictures)]
        ways: dict[str, Work] = {
            "images, encoder": lambda: self.images.forward(prepared),
            "images, encoder and its transform": lambda: self.images.encode(self.pictures),
        }
        for name, parts in self.parts.items():
            ways[f"images, {name}"] = lambda parts=parts: self.encode(parts)
            ways[f"images, {name}, not ahead"] = lambda parts=parts: self.serially(parts)
        data = PreparedImages(self.parts["webdataset"], self.spec)
        loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
        ways["images, webdataset, a process of DataLoader"] = lambda: self.images.forward(iter(loader))
        return ways

    def text_ways(self) -> dict[str, Work]:
        """Return the ways to encode the texts, the encoder alone first."""
        chunks = range(0, len(self.captions), encoding.CHUNK)
        prepared = [self.texts.prepare(self.captions[start : start + encoding.CHUNK]) for start in chunks]
        stores = {name: self.encode(parts) for name, parts in self.parts.items()}
        ways: dict[str, Work] = {"texts, encoder": lambda: self.texts.forward(prepared)}
        for name, parts in self.parts.items():
            ways[f"texts, {name}"] = lambda name=name, parts=parts: self.encode_texts(parts, stores[name])
        return ways

    def new_store(self) -> PartStore:
        """Return an empty store of parts."""
        self.n_runs += 1
        work = self.folder / f"work-{self.n_runs}"
        claim_work(work)
        return PartStore(work / "parts", work)

    def encode(self, parts: Iterable[Part]) -> PartStore:
        """Encode the images as `prepare` does."""
        store = self.new_store()
        for part in parts:
            encoding.encode_images(part, part.digest(), self.images, store, torch.float32, lambda count: None)
        return store

    def serially(self, parts: Iterable[Part]) -> None:
        """Encode the images without a thread that reads ahead."""
        with mock.patch.object(encoding, "read_ahead", lambda items, count: (item for item in items)):
            self.encode(parts)

    def encode_texts(self, parts: Iterable[Part], samples: PartStore) -> None:
        """Encode the texts as `prepare` does."""
        store = self.new_store()
        for part in parts:
            encoding.encode_texts(part.digest(), self.texts, samples, store, torch.float32, lambda count: None)


class PreparedImages(IterableDataset[Any]):
    """Prepared images of some parts, read by the worker of a `DataLoader`."""

    def __init__(self, parts: Iterable[Part], spec: str) -> None:
        self.parts, self.spec = parts, spec

    def __iter__(self) -> Iterator[Any]:
        """Yield batches."""
        for part in self.parts:
            images = (sample.image for sample in part.samples() if isinstance(sample, Sample))
            for batch in limited_batches(images, BATCH):
                yield self.encoder.prepare(batch)

    @cached_property
    def encoder(self) -> Encoder:
        """Return the encoder, loaded by the worker: threads that prepare images do not survive a fork."""
        return image_encoder(self.spec)


def measure(ways: dict[str, Work], n: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way; the first is the encoder alone."""
    walls: dict[str, list[float]] = {name: [] for name in ways}
    mains, others = ({name: list[float]() for name in ways} for _ in range(2))  # processor time of the threads
    for turn in range(rounds + 1):  # the first round warms up
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter(), time.thread_time(), time.process_time()
            ways[name]()
            wall, main, whole = (now() - start for now, start in zip(CLOCKS, began, strict=True))
            if turn:
                walls[name].append(wall)
                mains[name].append(main)
                others[name].append(whole - main)
    own = next(iter(ways))
    return [
        {
            "way": name,
            "per_second": round(n / statistics.median(walls[name])),
            "share": _share(walls[own], walls[name]),
            "share_by_processor_time": _share(mains[own], mains[name]),
            "encoder_thread_ms": round(statistics.median(mains[name]) / n * 1000, 2),
            "other_threads_ms": round(statistics.median(others[name]) / n * 1000, 2),
        }
        for name in ways
    ]


def _share(own: list[float], whole: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(own, whole, strict=True)), 3)


if __name__ == "__main__":
    main()
