"""Peak memory of each process of `prepare` against the number of samples, and samples per second.

python benchmarks/scale/prepare_memory.py

Two processes prepare the listings of the catalogue, repeated under other keys, from webdataset shards of 1,000. What encoders
learn from is bounded by 100,000 to 200,000 texts and 20,000 to 40,000 images; the series ``bounded`` lowers these bounds to
1,000 to 2,000, so that sizes at hand show what larger ones do. With ``BENCHMARK_FULL=1`` the file goes to
``benchmarks/results/<machine>/scale-prepare.json``; else a small run's goes to ``.benchmarks/<machine>/``.
"""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

FULL = os.environ.get("BENCHMARK_FULL") == "1"
SMALL = {"default": (1_000,), "bounded": (2_000,)}
LARGE = {"default": (2_000, 8_000, 32_000), "bounded": (8_000, 32_000, 128_000, 512_000)}
SIZES = LARGE if FULL else SMALL
SHARD, RANKS = 1_000, 2
BOUND = 1_000


def main() -> None:
    """Measure all sizes and write the file."""
    from conftest import PACKAGES, _version, processor
    from run import machine

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shards.mkdir()
        write_shards(shards, max(size for sizes in SIZES.values() for size in sizes))
        for series, sizes in SIZES.items():
            for size in sizes:
                rows.append(measure(Path(folder), series, size))
                print(json.dumps(rows[-1]), flush=True)
    result = (HERE.parent / "results" if FULL else HERE.parents[1] / ".benchmarks") / machine() / "scale-prepare.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "node": processor(),
        "cores": os.cpu_count(),
        "threads_of_a_process": 1,
        "versions": {name: _version(name) for name in PACKAGES},
        "measured": "peak resident memory (ru_maxrss) of each process in MiB, once all is encoded, and at the end",
        "rows": rows,
    }
    result.write_text(json.dumps(whole, indent=2) + "\n")
    print(f"Results: {result}")


def write_shards(folder: Path, n: int) -> None:
    """Write n samples as shards."""
    from clip_negatives import catalogue

    listings = catalogue.load("train")
    texts, pictures = listings.column("text"), []
    for row in range(len(listings)):
        stream = io.BytesIO()
        listings.image(row).save(stream, "PNG")
        pictures.append(stream.getvalue())
    for start in range(0, n, SHARD):
        with tarfile.open(folder / f"{start // SHARD:06d}.tar", "w") as tar:
            for place in range(start, min(start + SHARD, n)):
                row, again = place % len(pictures), place // len(pictures)
                for ending, data in (("png", pictures[row]), ("txt", f"{texts[row]} {again}".encode())):
                    info = tarfile.TarInfo(f"{place:09d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def measure(folder: Path, series: str, size: int) -> dict[str, Any]:
    """Return what one run of `RANKS` processes takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    urls = f"{folder}/shards/{{{0:06d}..{-(-size // SHARD) - 1:06d}}}.tar"
    output = folder / f"clusters-{series}-{size}"
    common = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, series, urls, str(output)]
    began = time.perf_counter()
    processes = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    said = [json.loads(process.communicate()[0]) for process in processes]
    seconds = time.perf_counter() - began
    if any(process.returncode for process in processes):
        raise RuntimeError(f"A process of the run with {size} samples failed.")
    encoding = max(one["encode_seconds"] for one in said)
    return {
        "series": series,
        "n_samples": said[0]["n_samples"],
        "processes": RANKS,
        "peak_mib_encoded": [one["peak_mib_encoded"] for one in said],
        "peak_mib_end": [one["peak_mib_end"] for one in said],
        "encode_seconds": encoding,
        "samples_per_second": round(said[0]["n_samples"] / encoding),
        "seconds": round(seconds, 1),
    }


def prepare(series: str, urls: str, output: str) -> None:
    """Be one process of a run, and say what it took."""
    from clip_negatives import prepare as module
    from clip_negatives.dataset import TarPairs
    from clip_negatives.features import assembly, run
    from clip_negatives.processes import joined

    if series == "bounded":
        assembly.FITTED_ON = run.LEARNED_ON = BOUND
    found: dict[str, Any] = {}
    cluster = module.cluster_together

    def watched(*features: Any, **options: Any) -> Any:
        found.update(encode_seconds=round(time.perf_counter() - began, 2), peak_mib_encoded=peak_mib())
        return cluster(*features, **options)

    with mock.patch.object(module, "cluster_together", watched), joined() as processes:
        began = time.perf_counter()
        how = {"image_encoder": "pixels", "text_encoder": "tfidf", "clusterer": "kmeans:n_clusters=64"}
        made = module.prepare_folder(TarPairs(urls), output, **how, progress=False, processes=processes)
    print(json.dumps({**found, "n_samples": made["n_samples"], "peak_mib_end": peak_mib()}))


def peak_mib() -> int:
    """Return the peak of this process's resident memory."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024))


if __name__ == "__main__":
    prepare(*sys.argv[1:]) if len(sys.argv) > 1 else main()
