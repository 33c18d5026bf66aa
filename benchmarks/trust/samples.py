"""Strange pictures and captions through prepare and training: python benchmarks/trust/samples.py [--small].

Real listings of the catalogue, some with another picture or caption in the place of theirs (`strange.py`): `prepare` encodes
and clusters them from csv and from tars, and open_clip's own training runs over both with the default method. A sample survives
encoding where its features are of unit norm, or 0 where an encoder finds nothing in it (a caption without words). It survives
training where it is handed out and every loss is finite and not 0.

The result goes to ``benchmarks/results/<machine>/trust-samples.json``; ``--small`` (the encoders without weights alone) goes to
``.benchmarks/<machine>/``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from record import Row, write
from strange import PICTURES, captions
from torch import Tensor

from clip_negatives import catalogue
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.dataset import open_pairs
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.prepare import prepare

EACH, BATCH = 2, 16
"""Samples of each class, and size of the batches."""

ENCODERS = {"no weights": ("pixels", "tfidf"), "pretrained": ("efficientnet-lite0", "minilm")}


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold a listing and what is strange about it, "" where nothing is."""

    what: str
    text: str
    picture: bytes
    suffix: str


def samples() -> list[Sample]:
    """Return real listings, the strange ones first, and as many others that the batches come out even."""
    listings = catalogue.load("test")
    titles = listings.column("text")
    texts = captions()
    classes = [*(f"picture: {name}" for name in PICTURES), *(f"caption: {name}" for name in texts)]
    found = []
    for row in range(-(-3 * EACH * len(classes) // BATCH) * BATCH):
        name = classes[row // EACH] if row < EACH * len(classes) else ""
        kind, _, what = name.partition(": ")
        text = texts[what] if kind == "caption" else titles[row]
        image = listings.image(row).convert("RGB")
        picture, suffix = PICTURES[what](image) if kind == "picture" else PICTURES["WebP without loss"](image)
        found.append(Sample(name, text, picture, suffix))
    return found


def write_csv(folder: Path, listed: list[Sample]) -> Path:
    """Write the samples as open_clip reads csv."""
    file = folder / "train.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["filepath", "title"])
        for row, sample in enumerate(listed):
            image = folder / f"{row}{sample.suffix}"
            image.write_bytes(sample.picture)
            writer.writerow([image, sample.text])
    return file


def write_tars(folder: Path, listed: list[Sample]) -> str:
    """Write the samples as two webdataset tars."""
    half = len(listed) // 2
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row in range(number * half, (number + 1) * half):
                for suffix, content in ((listed[row].suffix, listed[row].picture), (".txt", listed[row].text.encode())):
                    member = tarfile.TarInfo(f"{row:06d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "sizes.json").write_text(json.dumps({"0.tar": half, "1.tar": half}))
    return str(folder / "{0..1}.tar")


def sound(folder: ClustersFolder, n: int) -> set[int]:
    """Return the rows of the samples whose features are of unit norm or 0."""
    keys = [int(key) for key in folder.samples["key"].to_pylist()]
    sides = folder.clusters.image_features, folder.clusters.text_features
    norms = [side.norm(dim=1) for side in sides if side is not None]
    right = torch.stack([((norm - 1).abs() < 1e-3) | (norm == 0) for norm in norms]).all(dim=0)
    return {key for key, good in zip(keys, right.tolist(), strict=True) if good and key < n}


def trained(data: str, kind: str, clusters: Path, home: Path, n: int) -> set[int]:
    """Return the rows that an epoch of training handed out, if every loss of it is finite and not 0; else none."""
    seen: list[Tensor] = []
    log = home / "logs" / kind
    streams = ("--train-num-samples", str(n)) if kind == "webdataset" else ()
    arguments = [
        *("--train-data", data, "--dataset-type", kind, "--model", "clip-negatives-tiny", "--batch-size", str(BATCH), *streams),
        *("--epochs", "1", "--workers", "1" if streams else "0", "--lr", "1e-3", "--warmup", "2", "--log-every-n-steps", "1"),
        *("--precision", "fp32", "--device", "cpu", "--logs", str(home / "logs"), "--name", kind),
    ]
    sampler = {"sampler": "in_batch"} if streams else {}
    train(arguments, TrainOptions(clusters=clusters, on_batch=seen.append, **sampler))
    losses = [float(found) for found in re.findall(r"Contrastive_loss: (\S+)", (log / "out.log").read_text())]
    good = len(losses) >= n // BATCH and all(math.isfinite(loss) and loss > 0 for loss in losses)
    return set(torch.cat(seen).tolist()) if good else set()


def survived(home: Path, *, small: bool) -> Iterator[tuple[str, set[int]]]:
    """Yield each way through the package and the samples that survived it."""
    listed = samples()
    data = {"csv": str(write_csv(home, listed)), "webdataset": write_tars(home, listed)}
    for kind, path in data.items():
        for encoders, (image, text) in ENCODERS.items():
            if small and encoders != "no weights":
                continue
            output = home / f"{kind}-{encoders.replace(' ', '-')}"
            folder = prepare(
                open_pairs(path, dataset_type=kind), output, image_encoder=image, text_encoder=text, progress=False
            )
            yield f"prepare, {kind}, {encoders}", sound(folder, len(listed))
        yield f"train, {kind}", trained(path, kind, home / f"{kind}-no-weights", home, len(listed))


def main() -> None:
    """Put every sample through every way, and write the result file."""
    small = "--small" in sys.argv
    start, whats = time.perf_counter(), [sample.what for sample in samples()]
    tried, lost = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIP_NEGATIVES_CACHE"] = str(Path(home) / "cache")
        for way, rows in survived(Path(home), small=small):
            gone = [what for row, what in enumerate(whats) if row not in rows]
            print(f"{way}: {len(rows)} of {len(whats)}", *sorted(set(gone)), sep="\n    ", flush=True)
            tried.update(whats)
            lost.update(gone)
    told = "features of unit norm or 0, finite losses, handed out"
    rows = [
        Row("prepare, train", what or "an ordinary listing", n, n - lost[what], lost[what], told) for what, n in tried.items()
    ]
    command = "python benchmarks/trust/samples.py"
    print(write("samples", rows, command=command, seconds=time.perf_counter() - start, small=small))


if __name__ == "__main__":
    main()
