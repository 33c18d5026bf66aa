"""Measure how k-means scales: python benchmarks/scale/kmeans_scaling.py [--small].

The data are up to 2,000,000 x 128 features in blobs, float16, memory-mapped. `kmeans` trains on a sample and assigns all rows.
Beside it: other sizes of the sample, two levels, all rows in each iteration by faiss, and mini-batches of scikit-learn. Each
case has a process of its own with one thread. Wall clock and processor time are both kept, with the load of the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from run import machine, result_file, write_json
from watch import watched

from clip_negatives.clustering.options import load_faiss
from clip_negatives_plugins.kmeans.clusterer import KMeans

FULL: dict[str, Any] = {"d": 128, "k": 1024, "n": [250_000, 500_000, 1_000_000, 2_000_000], "compared": 500_000, "many": 4096}
SMALL: dict[str, Any] = {"d": 16, "k": 16, "n": [1000, 2000], "compared": 2000, "many": 64}
SAMPLES = (256, 64)  # rows per cluster that train the centroids
BATCH = 4096  # rows of a mini-batch
Row = dict[str, Any]


def write_blobs(file: Path, n: int, d: int, blobs: int) -> None:
    """Write unit rows in blobs of uneven sizes, float16.

    The cosine of a blob's centre with one of 64 themes is about 0.5, that of a row with the centre of its blob about 0.8.
    """
    generator = torch.Generator().manual_seed(0)
    themes = F.normalize(torch.randn(64, d, generator=generator), dim=1)
    centres = themes[torch.randint(64, (blobs,), generator=generator)]
    centres = F.normalize(centres + 1.7 * d**-0.5 * torch.randn(blobs, d, generator=generator), dim=1)
    weights = 1 / torch.arange(1.0, blobs + 1).sqrt()
    with file.open("wb") as stream:
        for start in range(0, n, 65_536):
            size = min(65_536, n - start)
            home = torch.multinomial(weights, size, replacement=True, generator=generator)
            rows = centres[home] + 0.75 * d**-0.5 * torch.randn(size, d, generator=generator)
            stream.write(F.normalize(rows, dim=1).half().numpy().tobytes())


def mapped(file: str, n: int, d: int) -> torch.Tensor:
    """Return the first n rows, mapped from the file."""
    return torch.from_file(file, shared=False, size=n * d, dtype=torch.float16).view(n, d)


def mean_cosine(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean cosine of the samples with the mean of their cluster."""
    k = int(labels.max()) + 1
    means = torch.zeros(k, features.shape[1])
    for start in range(0, len(features), 65_536):
        means.index_add_(0, labels[start : start + 65_536], features[start : start + 65_536].float())
    means, total = F.normalize(means, dim=1), 0.0
    for start in range(0, len(features), 65_536):
        part = slice(start, start + 65_536)
        total += float((features[part].float() * means[labels[part]]).sum(dtype=torch.float64))
    return total / len(features)


def cases(size: dict[str, Any]) -> list[Row]:
    """Return what is measured: sizes, then other ways at one size, then many clusters."""
    at = {"n": size["compared"], "k": size["k"]}
    rows: list[Row] = [{"by": "kmeans", "n": n, "k": size["k"]} for n in size["n"]]
    rows += [{"by": "kmeans", **at, "options": {"max_samples_per_cluster": count}} for count in SAMPLES[1:]]
    rows += [{"by": "faiss, all rows", **at}, {"by": "scikit-learn, mini-batches", **at}]
    many: Row = {"by": "kmeans", "n": size["compared"], "k": size["many"]}
    few = {"max_samples_per_cluster": SAMPLES[-1]}
    return [*rows, {**many, "options": few}, {**many, "options": {**few, "levels": 2}}]


def labels_of(features: torch.Tensor, case: Row) -> torch.Tensor:
    """Cluster by one of the ways, with 25 iterations."""
    if case["by"] == "kmeans":
        made = KMeans(n_clusters=case["k"], seed=0, **case.get("options", {}))
        return made.fit(features, generator=torch.Generator()).labels
    if case["by"] == "faiss, all rows":
        return (
            KMeans(n_clusters=case["k"], seed=0, max_samples_per_cluster=len(features))
            .fit(features, generator=torch.Generator())
            .labels
        )
    from sklearn.cluster import MiniBatchKMeans

    made = MiniBatchKMeans(case["k"], batch_size=BATCH, n_init=1, random_state=0, max_iter=4)
    return torch.from_numpy(made.fit_predict(features.float().numpy())).long()


def work(file: str, d: int, case: Row) -> Row:
    """Measure one case in this process."""
    torch.set_num_threads(1)
    load_faiss().omp_set_num_threads(1)
    import sklearn.cluster  # noqa: F401  (so that neither its seconds nor its memory count)

    features, load = mapped(file, case["n"], d), os.getloadavg()[0]
    labels, seconds, processor, first, peak = watched(lambda: labels_of(features, case))
    measured = {"seconds": seconds, "processor_seconds": processor, "mib": peak - first, "load": load}
    return {**case, **measured, "mean_cosine": mean_cosine(features, labels)}


def run(file: Path, d: int, case: Row) -> Row:
    """Measure one case in a new process, or in this one at the small size."""
    if "--small" in sys.argv:
        return work(str(file), d, case)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--case", str(file), str(d), json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    row: Row = json.loads(done.stdout)
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Measure all cases and write the result file."""
    small = "--small" in sys.argv
    size = SMALL if small else FULL
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "features.bin"
        write_blobs(file, max(size["n"]), size["d"], 4 * size["k"])
        rows = [run(file, size["d"], case) for case in cases(size)]
    about = {"machine": {"name": machine(), "cores": os.cpu_count(), "threads_per_process": 1}}
    about |= {"versions": {"torch": torch.__version__, "python": sys.version.split()[0]}}
    write_json(result_file("scale-kmeans.json", small=small), {"size": size, **about, "rows": rows})


if __name__ == "__main__":
    if "--case" in sys.argv:
        print(json.dumps(work(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))))
    else:
        main()
