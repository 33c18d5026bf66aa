"""Measure peak memory and rate of `prepare` against the number of samples: python benchmarks/scale/prepare_memory.py.

Two processes prepare the listings of the catalogue, repeated under other keys, from webdataset shards of 1,000. Encoders are
fitted on at most 200,000 texts and 40,000 images; the series ``bounded`` lowers these bounds to 2,000, so that small sizes show
the growth of large ones. ``BENCHMARK_FULL=1`` takes the full sizes.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
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
SHARD, RANKS, BOUND = 1_000, 2, 1_000


def main() -> None:
    """Measure all sizes and write the file."""
    from conftest import machine
    from run import result_file, write_json

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shards.mkdir()
        write_shards(shards, max(size for sizes in SIZES.values() for size in sizes))
        for series, sizes in SIZES.items():
            for size in sizes:
                rows.append(measure(Path(folder), series, size))
                print(json.dumps(rows[-1]), flush=True)
    result = {
        **machine(),
        "threads_of_a_process": 1,
        "measured": "peak resident memory (ru_maxrss) of each process in MiB, once all is encoded, and at the end",
        "rows": rows,
    }
    print(f"Results: {write_json(result_file('scale-prepare.json', small=not FULL), result)}")


def write_shards(folder: Path, n: int) -> None:
    """Write n samples as shards."""
    import webdataset

    from clip_negatives import catalogue

    listings = catalogue.load("train")
    texts, pictures = listings.column("text"), []
    for row in range(len(listings)):
        stream = io.BytesIO()
        listings.image(row).save(stream, "PNG")
        pictures.append(stream.getvalue())
    for start in range(0, n, SHARD):
        with webdataset.TarWriter(str(folder / f"{start // SHARD:06d}.tar"), encoder=False) as tar:
            for place in range(start, min(start + SHARD, n)):
                again, row = divmod(place, len(pictures))
                tar.write({"__key__": f"{place:09d}", "png": pictures[row], "txt": f"{texts[row]} {again}".encode()})


def measure(folder: Path, series: str, size: int) -> dict[str, Any]:
    """Return time and memory of one run of `RANKS` processes; raise a CalledProcessError if it fails."""
    urls = f"{folder}/shards/{{{0:06d}..{-(-size // SHARD) - 1:06d}}}.tar"
    output = folder / f"clusters-{series}-{size}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", __file__]
    began, environment = time.perf_counter(), {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, series, urls, str(output)], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    ranks = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda figures: figures["rank"])
    encoding = max(figures["encode_seconds"] for figures in ranks)
    return {
        "series": series,
        "n_samples": ranks[0]["n_samples"],
        "processes": RANKS,
        **{name: [figures[name] for figures in ranks] for name in ("peak_mib_encoded", "peak_mib_end")},
        "encode_seconds": encoding,
        "samples_per_second": round(ranks[0]["n_samples"] / encoding),
        "seconds": round(time.perf_counter() - began, 1),
    }


def prepare(series: str, urls: str, output: str) -> None:
    """Run `prepare` as one process of a run, and print its time and memory."""
    from run import memory_mib

    from clip_negatives import Recipe
    from clip_negatives.dataset import TarPairs
    from clip_negatives.distributed.torchrun import joined
    from clip_negatives.features import assembly, run
    from clip_negatives.pipelines import prepare as module

    if series == "bounded":
        assembly.FITTED_ON = run.LEARNED_ON = BOUND
    found: dict[str, Any] = {}
    cluster = module.cluster_together

    def watched(*features: Any, **options: Any) -> Any:
        found.update(encode_seconds=round(time.perf_counter() - began, 2), peak_mib_encoded=round(memory_mib()))
        return cluster(*features, **options)

    with mock.patch.object(module, "cluster_together", watched), joined() as processes:
        began = time.perf_counter()
        recipe = Recipe(clusterer="kmeans:n_clusters=64")
        made = module.prepare_folder(TarPairs(urls), output, recipe, progress=False, processes=processes)
    print(json.dumps({**found, "rank": processes.rank, "n_samples": made["n_samples"], "peak_mib_end": round(memory_mib())}))


if __name__ == "__main__":
    prepare(*sys.argv[1:]) if len(sys.argv) > 1 else main()
