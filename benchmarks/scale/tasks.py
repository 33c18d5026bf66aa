"""Measure the commands of independent tasks over an object store: python benchmarks/scale/tasks.py [--small] [STEP ...].

Without a step (encode, cluster), both are measured; otherwise, the result file keeps the rows of the other.
`encode` reads tars of made-up images. The other commands read made-up features, which are written without `encode`. Each size
runs in a process of its own with one thread. Rates are by processor time. Memory is the peak above the memory before the step,
without mapped files. The store counts requests and bytes; it is on the local disk, so its time is not that of a network.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from counted_store import counts
from PIL import Image
from rates import ROOT, alone, measured
from run import result_file, write_json

from clip_negatives import Recipe
from clip_negatives.pipelines.assigned_parts import assign_parts
from clip_negatives.pipelines.encoded_parts import NOTHING, encode_parts, parts_folder
from clip_negatives.pipelines.given_labels import write_given_labels
from clip_negatives.pipelines.sampled_centroids import write_centroids
from clip_negatives.storage.manifest import SAMPLES

SIDE = 224  # pixels of the sides of an image
DIM, CLUSTERS = 64, 256  # of the made-up features
SIZES = {
    "full": {"encode": ([4000, 16_000], 1000), "cluster": ([10**5, 10**6, 10**7], 10_000)},  # pairs, and those of a tar
    "small": {"encode": ([40], 10), "cluster": ([4000], 400)},
}


def main() -> None:
    """Measure all commands at every size, and write the result file."""
    small = "--small" in sys.argv
    sizes = SIZES["small" if small else "full"]
    chosen = {*sys.argv[1:]} & STEPS.keys() or STEPS.keys()
    rows: list[dict[str, Any]] = []
    for step in (name for name in STEPS if name in chosen):
        counts, shard = sizes[step]
        for n in counts:
            with tempfile.TemporaryDirectory(dir=ROOT / ".benchmarks") as home:
                rows += alone(STEPS[step], Path(home), n, shard)
            print(*rows[-1:], flush=True)
    file = result_file("scale-tasks.json", small=small)
    names = {row["step"] for row in rows}
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    rows += [row for row in kept if row["step"] not in names]
    about = {"clusters": CLUSTERS, "dim": DIM, "side": SIDE, "load": os.getloadavg()[0]}
    write_json(file, {**about, "rows": rows})


def counted(name: str, n: int, shard: int, work: Callable[[], Any]) -> dict[str, Any]:
    """Do some work on n samples, and return its time, memory and traffic."""
    counts.clear()
    return measured(name, n, work, tars=-(-n // shard)) | counts


def encode(home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Encode tars by encoders that take little time, so that reading and writing are measured."""
    image_bytes = write_tars(home, n, shard, SIDE)
    tars = f"counted://{home}/{{000000..{(n - 1) // shard:06d}}}.tar"
    recipe = Recipe(image_encoder="pixels:dim=0", text_encoder="hashing", feature_dtype="float16")
    encode_parts(f"counted://{home}/000000.tar", home / "first", recipe, progress=False)  # imports what is needed
    row = counted("encode", n, shard, lambda: encode_parts(tars, f"counted://{home}/parts", recipe, progress=False))
    return [{**row, "image_bytes": image_bytes}]


def write_tars(home: Path, n: int, shard: int, side: int) -> int:
    """Write tars of n made-up images with captions, and return the size of an image."""
    home.mkdir(exist_ok=True)
    generator, sizes = np.random.default_rng(0), []
    for start in range(0, n, shard):
        with webdataset.TarWriter(str(home / f"{start // shard:06d}.tar"), encoder=False) as tar:
            for row in range(start, min(n, start + shard)):
                jpeg = io.BytesIO()
                noise = generator.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(noise).resize((side, side)).save(jpeg, "JPEG", quality=90)
                sizes.append(len(jpeg.getvalue()))
                tar.write({"__key__": f"{row:09d}", "jpg": jpeg.getvalue(), "txt": f"a text of sample {row}".encode()})
    return round(sum(sizes) / len(sizes))


def cluster(home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Cluster a sample of made-up features, assign all, and write labels."""
    url = f"counted://{home}"
    write_parts(home, n, shard)
    files = f"{home}/centroids/image.npy,{home}/centroids/text.npy"

    def centroids() -> None:
        write_centroids(f"{url}/parts", home / "centroids", clusterer=f"kmeans:n_clusters={CLUSTERS}", progress=False)

    def assign() -> None:
        report = assign_parts(f"{url}/parts", home / "centroids", f"{url}/assignments", progress=False)
        assert not report.n_left, report.faults

    def labels() -> None:
        write_given_labels(f"{home}/assignments", files, home / "labels")

    steps = (("centroids", centroids), ("assign", assign), ("labels of tasks", labels))
    return [counted(name, n, shard, work) for name, work in steps]


def write_parts(home: Path, n: int, shard: int) -> None:
    """Write made-up features, float16, as `encode` does: blobs around as many centres as there are clusters."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLUSTERS, DIM))
    blocks = [centres[generator.integers(0, CLUSTERS, shard)] + 0.5 * generator.normal(size=(shard, DIM)) for _ in range(4)]
    blocks = [(block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16) for block in blocks]
    names = [f"{number:06d}" for number in range(-(-n // shard))]
    folder = parts_folder(home / "parts").begun({"features": {"made": "up"}}, names)
    for number, name in enumerate(names):
        rows = range(number * shard, min(n, (number + 1) * shard))
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            columns = {"key": [f"{row:09d}" for row in rows], "text": [f"a text of sample {row}" for row in rows]}
            tars = [str(home / f"{name}.tar")] * len(rows)
            pq.write_table(pa.table({**columns, "shard": tars}), Path(scratch) / SAMPLES, compression="zstd")
            for place, side in enumerate(("image", "text")):
                np.save(Path(scratch) / f"{side}.npy", blocks[(number + place) % len(blocks)][: len(rows)])
            folder.publish(name, Path(scratch), {**NOTHING, "count": len(rows), "missing": None, "digest": name})


STEPS: dict[str, Callable[..., list[dict[str, Any]]]] = {"encode": encode, "cluster": cluster}

if __name__ == "__main__":
    main()
