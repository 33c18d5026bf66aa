"""Measure what a sample takes in memory: python benchmarks/scale/memory.py [--small].

Training on csv: memory of a process and its two workers of the `DataLoader`, and the same with the csv data set of open_clip.
`reshard`: peak of the task that makes the plan. Made-up samples are in 1,000 clusters, so tables between clusters are small.
Each measurement runs in a process of its own. That of a few samples is subtracted, and the rest divided by the samples.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from rates import SHARD, alone, clustering
from run import result_file, write_json
from torch.utils.data import DataLoader
from watch import watched

from clip_negatives import Method
from clip_negatives.pipelines.new_shards import open_output
from clip_negatives.storage.clusters_folder import read_clusters, write_clusters_from_files
from clip_negatives.storage.manifest import SAMPLES
from clip_negatives.storage.ownership import claim_work

SIZES = {"full": (10**6,), "small": (20_000,)}
FEW = 2000  # samples of the measurement that is subtracted
K = 1000  # clusters
BATCH, READ = 1000, 100_000  # samples of a batch, and samples that the workers read before they are measured
WORKERS = 2


def main() -> None:
    """Measure each case at each size, and write the result file."""
    small = "--small" in sys.argv
    few, rows = held_with(FEW), []
    for n in SIZES["small" if small else "full"]:
        for name, held in held_with(n).items():
            per_sample = {key: (held[key] - few[name][key]) * 2**20 / (n - FEW) for key in held}
            rows.append({"case": name, "n": n, **per_sample})
            print(rows[-1], flush=True)
    about = {"k": K, "workers": WORKERS, "read": READ}
    print(f"Results: {write_json(result_file('scale-memory.json', small=small), {**about, 'rows': rows})}")


def held_with(n: int) -> dict[str, dict[str, float]]:
    """Return what each case with n samples holds, in MiB."""
    with tempfile.TemporaryDirectory() as home:
        alone(write_data, Path(home), n, SHARD)
        return {name: apart(name, home, n) for name in CASES}


def apart(name: str, home: str, n: int) -> dict[str, float]:
    """Return what a case holds, in MiB."""
    command = [sys.executable, __file__, "--case", name, home, str(n)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    held: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return held


def write_data(home: Path, n: int, shard: int) -> list[dict[str, Any]]:
    """Write a csv file whose paths all lead to one image, and clusters folders of its rows and of tars."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    Image.new("RGB", (8, 8)).save(home / "image.png")
    rows = range(n)
    # Each path is another spelling of the same one: a bit of the row number becomes "/" or "./".
    paths = [f"{home}/" + f"{row:024b}".replace("0", "/").replace("1", "./") + "image.png" for row in rows]
    texts = [f"a text that says at some length what is in {row}" for row in rows]
    pa.csv.write_csv(
        pa.table({"filepath": paths, "title": texts}),
        home / "data.csv",
        pa.csv.WriteOptions(delimiter="\t", quoting_style="none"),
    )
    keys = [f"{row:09d}" for row in rows]
    tars = [str(home / f"{row // shard:06d}.tar") for row in rows]
    for name, column, values in (("csv", "image", paths), ("tars", "shard", tars)):
        work = home / f"{name}-work"
        claim_work(work)
        pq.write_table(pa.table({"key": keys, "text": texts, column: values}), work / SAMPLES, compression="zstd")
        sides = [clustering(n, K, seed) for seed in range(2)]
        write_clusters_from_files(home / name, sides, [work / SAMPLES], {"data": "made up"})
    return []


def of_open_clip(home: Path, n: int) -> dict[str, float]:
    """Train on the csv file as open_clip does."""
    from open_clip_train.data import CsvDataset

    dataset = CsvDataset(str(home / "data.csv"), nothing, "filepath", "title", tokenizer=tokens)
    return held_by(DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS))


def of_table(home: Path, n: int) -> dict[str, float]:
    """Train on the csv file by the data set of this package, in the order of open_clip."""
    from clip_negatives.integrations.open_clip.table_dataset import TableDataset

    dataset = TableDataset(str(home / "data.csv"), nothing, "filepath", "title", "\t", tokens)
    return held_by(DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS))


def of_sampler(home: Path, n: int) -> dict[str, float]:
    """Train on the csv file in the batches of the default sampler, as `train` does."""
    from clip_negatives.batches.loader import IndexedLoader
    from clip_negatives.integrations.open_clip.table_dataset import TableDataset
    from clip_negatives.interfaces import SamplingContext

    dataset = TableDataset(str(home / "data.csv"), nothing, "filepath", "title", "\t", tokens)
    folder = read_clusters(home / "csv")
    sampler = Method().create_sampler(SamplingContext.of(folder.clusters, BATCH))
    loader = IndexedLoader(DataLoader(dataset, BATCH, num_workers=WORKERS), sampler)
    memory = held_by(loader)
    assert folder.samples.num_rows == n  # the folder is held until here, as in a training
    return memory


def of_reshard(home: Path, n: int) -> dict[str, float]:
    """Make the plan of `reshard`."""
    from clip_negatives.pipelines.reshard import _Job

    tars = str(home / f"{{000000..{(n - 1) // SHARD:06d}}}.tar")

    def plan() -> None:
        job = _Job(tars, home / "tars", open_output(home / "new"), Method.sampler, SHARD if n > SHARD else 100, 0)
        job.prepared()

    _, _, _, first, peak = watched(plan)
    return {"peak": peak - first}


def held_by(loader: Any) -> dict[str, float]:
    """Return the memory of this process before the workers start, and with them once they have read some samples, in MiB."""
    before = anonymous(os.getpid())
    batches = iter(loader)
    for _ in range(min(READ // BATCH, len(loader))):
        next(batches)
    workers = [worker.pid for worker in multiprocessing.active_children()]
    assert len(workers) == WORKERS
    return {"process": before, "with_workers": anonymous(os.getpid()) + sum(map(anonymous, workers))}


def anonymous(process: int) -> float:
    """Return the memory of a process without mapped files, in MiB; pages that n processes share count 1/n."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss_Anon:"))


def nothing(image: Any) -> int:
    """Return a number in place of an image: its pixels are not measured."""
    return 0


def tokens(texts: list[str]) -> list[int]:
    """Return a number for each text in place of its tokens."""
    return [len(text) for text in texts]


CASES = {
    "csv data set of open_clip": of_open_clip,
    "our table": of_table,
    "our table, clusters and sampler": of_sampler,
    "plan of reshard": of_reshard,
}

if __name__ == "__main__":
    if "--case" in sys.argv:
        torch.set_num_threads(1)
        print(json.dumps(CASES[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
