"""Measure the memory of `prepare --features` on npy files of 1 GB: python benchmarks/scale/given_memory.py.

Each case runs in a process of its own. A thread watches its memory, without pages that are mapped from a file: the system takes
these back when it needs them. ``--small`` takes files of 64 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

DIM, BYTES = 512, 2  # dimensions of a feature, and bytes of a float16
SIZES = {"small": 2**26, "full": 2**30}
BLOCK = 16_384  # rows that are written at a time
CASES = ("unit", "scaled")  # features mapped from the user's file; features scaled on disk


def main() -> None:
    """Measure both cases and write the file."""
    from conftest import machine
    from run import result_file, write_json

    is_small = "--small" in sys.argv
    size = SIZES["small" if is_small else "full"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            write_data(Path(folder), size // (DIM * BYTES), scale=1 if case == "unit" else 3)
            done = subprocess.run([sys.executable, __file__, folder], check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"case": case, "mib_of_a_file": size / 2**20, **json.loads(done.stdout)})
            print(json.dumps(rows[-1]), flush=True)
    result = {
        **machine(),
        "measured": "peak of the memory that is not mapped from a file (RssAnon), in MiB, above that before the call",
        "rows": rows,
    }
    print(f"Results: {write_json(result_file('scale-given.json', small=is_small), result)}")


def write_data(folder: Path, n: int, scale: int) -> None:
    """Write texts, and n features of images and texts, block by block."""
    import numpy as np
    import pandas as pd

    generator = np.random.default_rng(0)
    centers = generator.standard_normal((64, DIM), dtype=np.float32)
    pd.DataFrame({"caption": [f"text {row}" for row in range(n)]}).to_parquet(folder / "texts.parquet")
    for side in ("images", "texts"):
        rows = np.lib.format.open_memmap(folder / f"{side}.npy", "w+", np.float16, (n, DIM))
        for start in range(0, n, BLOCK):
            count = min(BLOCK, n - start)
            block = centers[generator.integers(64, size=count)] + generator.standard_normal((count, DIM), dtype=np.float32)
            rows[start : start + count] = scale * block / np.linalg.norm(block, axis=1, keepdims=True)
        rows.flush()


def prepare(folder: Path) -> None:
    """Prepare clusters, and print time and memory."""
    import torch
    from run import memory_mib

    from clip_negatives import Recipe
    from clip_negatives.pipelines.prepare import prepare_folder

    torch.set_num_threads(1)
    is_done, before = threading.Event(), memory_mib("RssAnon")
    memory: dict[str, Any] = {"peak": before}

    def watch() -> None:
        while not is_done.wait(0.01):
            memory["peak"] = max(memory["peak"], memory_mib("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    recipe = Recipe(clusterer="kmeans:n_clusters=64,n_iter=3")
    spec = f"{folder}/images.npy,{folder}/texts.npy"
    manifest = prepare_folder(folder / "texts.parquet", folder / "clusters", recipe, features=spec, progress=False)
    is_done.set()
    watcher.join()
    peak, seconds = round(memory["peak"] - before), round(time.perf_counter() - began, 1)
    print(json.dumps({"n_samples": manifest["n_samples"], "additional_peak_mib": peak, "seconds": seconds}))


if __name__ == "__main__":
    prepare(Path(sys.argv[1])) if sys.argv[1:] not in ([], ["--small"]) else main()
