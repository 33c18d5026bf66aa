"""Measure how the parallel k-means scales: python benchmarks/scale/kmeans_scaling.py [--small].

The data are 2,000,000 x 256 features in blobs, float16, memory-mapped. Measured are the seconds of an iteration against N and
on 1, 2 and 4 processes (strong: the same N; weak: the same N for each), the peak memory of a process, and quality and time of
faiss, scikit-learn and two levels. Each process has one thread. Wall clock and processor time are both kept, with the
load of the machine.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from run import machine, result_file, write_json
from watch import watched

from clip_negatives_plugins.parallel_kmeans.clusterer import ParallelKMeans
from clip_negatives_plugins.parallel_kmeans.iterations import KMeansRun

HERE = Path(__file__).resolve().parent
FULL = {"n": 2_000_000, "d": 256, "k": 1024, "strong": 500_000, "weak": 250_000, "quality": 250_000, "iterations": 8}
FULL |= {"batch": 4096, "rates": [250_000, 500_000, 1_000_000, 2_000_000], "levels": {"n": 100_000, "k": 4096}}
SMALL = {"n": 4000, "d": 16, "k": 16, "strong": 4000, "weak": 2000, "quality": 2000, "iterations": 3}
SMALL |= {"batch": 256, "rates": [1000, 2000], "levels": {"n": 2000, "k": 64}}
PROCESSES = {"full": (1, 2, 4), "small": (1, 2)}
Result = dict[str, Any]


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


def ours(features: torch.Tensor, job: Result) -> torch.Tensor:
    """Cluster with parallel_kmeans and record the seconds of each iteration over all rows."""
    real = KMeansRun._pass_over_all
    job["iterations"] = []

    def timed(self: KMeansRun, state: Any) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        real(self, state)
        job["iterations"].append((time.perf_counter() - clock, time.process_time() - processor))

    with mock.patch.object(KMeansRun, "_pass_over_all", timed):
        made = ParallelKMeans(seed=0, **job["options"])
        return made.fit_parallel(features, generator=torch.Generator()).labels


def by_faiss(features: torch.Tensor, job: Result) -> torch.Tensor:
    """Cluster with faiss, all samples in each iteration."""
    import faiss

    faiss.omp_set_num_threads(1)
    rows = features.float().numpy()
    options = job["options"]
    points = {"max_points_per_centroid": len(rows), "min_points_per_centroid": 1}
    made = faiss.Kmeans(rows.shape[1], options["n_clusters"], niter=options["n_iter"], seed=0, spherical=True, **points)
    made.train(rows)
    return torch.from_numpy(made.index.search(rows, 1)[1][:, 0].copy())


def by_sklearn(features: torch.Tensor, job: Result) -> torch.Tensor:
    """Cluster with scikit-learn's mini-batches."""
    import sklearn.cluster

    options = {"batch_size": job["options"]["batch_size"], "n_init": 1, "random_state": 0, "max_iter": 4}
    made = sklearn.cluster.MiniBatchKMeans(job["options"]["n_clusters"], **options)
    return torch.from_numpy(made.fit_predict(features.float().numpy())).long()


def work(job: Result) -> Result:
    """Run one job in this process and return its time and memory."""
    torch.set_num_threads(1)
    if job["options"].get("init") != "random":
        import sklearn.cluster  # noqa: F401 (so that neither its seconds nor its memory count)
    if job["world"] > 1:
        place = {"init_method": f"file://{job['meet']}", "rank": job["rank"], "world_size": job["world"]}
        torch.distributed.init_process_group("gloo", **place)
    features = mapped(job["file"], job["n"], job["d"])
    labels, seconds, processor, first, peak = watched(
        lambda: {"ours": ours, "faiss": by_faiss, "sklearn": by_sklearn}[job["by"]](features, job)
    )
    took = {"seconds": seconds, "processor_seconds": processor}
    took |= {"peak_anonymous_mib": peak - first, "anonymous_before_mib": first}
    took["max_resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if job["judge"] and job["rank"] == 0:
        took["mean_cosine"] = mean_cosine(features, labels)
    if job.get("iterations"):
        took["iteration_seconds"], took["iteration_processor_seconds"] = map(list, zip(*job["iterations"], strict=True))
    if job["world"] > 1:
        torch.distributed.destroy_process_group()  # otherwise gloo's threads may abort the process
    return took


@functools.cache
def run(file: Path, n: int, d: int, by: str = "ours", world: int = 1, *, judge: bool = False, **options: Any) -> Result:
    """Run a job and return time and memory of each process, and the load of the machine before; no job runs twice.

    Each process is a new one, except that a single process at the small size is this one.
    """
    load = os.getloadavg()[0]
    about = {"by": by, "n": n, "processes": world, **options, "load": load}
    job = {"file": str(file), "n": n, "d": d, "by": by, "world": world, "judge": judge, "options": options}
    if "--small" in sys.argv and world == 1:
        return {**about, "ranks": [work({**job, "rank": 0})]}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [json.dumps({**job, "rank": rank, "meet": f"{folder}/meet"}) for rank in range(world)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        commands = [[sys.executable, __file__, "--job", each] for each in jobs]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for command in commands]
        said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{by} with {options} on {world} processes ended with {[p.returncode for p in started]}.")
    return {**about, "ranks": [json.loads(each) for each in said]}


def seconds(result: Result, kind: str = "iteration_seconds") -> float:
    """Return the seconds of the fastest iteration, in the slowest process."""
    return max(min(rank[kind]) for rank in result["ranks"])


def measure(file: Path, size: Result, processes: tuple[int, ...]) -> Result:
    """Measure everything."""
    d, plain = size["d"], {"n_clusters": size["k"], "init": "random", "n_iter": 2, "tolerance": 0.0}
    rates = [run(file, n, d, world=1, **plain) for n in size["rates"]]
    strong = [run(file, size["strong"], d, world=world, **plain) for world in processes]
    shares = {world: size["weak"] * world for world in processes if size["weak"] * world <= size["n"]}
    weak = [run(file, n, d, world=world, **plain) for world, n in shares.items()]
    k, n, levels = size["k"], size["quality"], size["levels"]
    full = {"n_clusters": k, "n_iter": size["iterations"]}
    passes = 4 * -(-n // size["batch"])
    quality = [
        run(file, n, d, "faiss", judge=True, **full),
        *(run(file, n, d, judge=True, init=init, tolerance=0.0, **full) for init in ("random", "kmeans++")),
        run(file, n, d, "sklearn", judge=True, n_clusters=k, batch_size=size["batch"]),
        run(file, n, d, judge=True, n_clusters=k, batch_size=size["batch"], n_iter=passes, tolerance=0.0),
    ]
    many = {"n_clusters": levels["k"], "n_iter": size["iterations"], "init": "random", "tolerance": 0.0}
    two = [run(file, levels["n"], d, judge=True, levels=number, **many) for number in (1, 2)]
    return {"rates": rates, "strong": strong, "weak": weak, "quality": quality, "levels": two}


def summary(found: Result) -> Result:
    """Return the summary of all figures."""
    busy = "iteration_processor_seconds"
    one = found["strong"][0], found["weak"][0]
    return {
        "seconds_per_iteration": {each["n"]: seconds(each) for each in found["rates"]},
        "processor_seconds_per_iteration": {each["n"]: seconds(each, busy) for each in found["rates"]},
        "peak_anonymous_mib": {each["n"]: each["ranks"][0]["peak_anonymous_mib"] for each in found["rates"]},
        "strong_efficiency": {e["processes"]: seconds(one[0]) / seconds(e) / e["processes"] for e in found["strong"]},
        "strong_efficiency_of_processor": {
            e["processes"]: seconds(one[0], busy) / sum(min(rank[busy]) for rank in e["ranks"]) for e in found["strong"]
        },
        "weak_efficiency": {e["processes"]: seconds(one[1]) / seconds(e) for e in found["weak"]},
        "weak_efficiency_of_processor": {e["processes"]: seconds(one[1], busy) / seconds(e, busy) for e in found["weak"]},
        "peak_anonymous_mib_of_ranks": {
            e["processes"]: max(r["peak_anonymous_mib"] for r in e["ranks"]) for e in found["strong"]
        },
        "quality": [_judged(each) for each in found["quality"]],
        "levels": [_judged(each) for each in found["levels"]],
    }


def _judged(result: Result) -> Result:
    options = {name: result[name] for name in ("n", "n_clusters", "n_iter", "init", "batch_size", "levels") if name in result}
    taken = {name: result["ranks"][0][name] for name in ("seconds", "processor_seconds", "mean_cosine", "peak_anonymous_mib")}
    return {"by": result["by"], **options, **taken}


def main() -> None:
    """Measure, print the summary, and write the result file."""
    small = "--small" in sys.argv
    size = SMALL if small else FULL
    began, load = time.perf_counter(), os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "features.bin"
        write_blobs(file, size["n"], size["d"], 4 * size["k"])
        written = time.perf_counter() - began
        found = measure(file, size, PROCESSES["small" if small else "full"])
    result = {
        "size": size,
        "machine": {"name": machine(), "cores": os.cpu_count(), "threads_per_process": 1},
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "load_before": load,
        "load_after": os.getloadavg(),
        "seconds_in_all": time.perf_counter() - began,
        "seconds_to_write_features": written,
        "summary": summary(found),
        "measured": found,
    }
    write_json(result_file("scale-kmeans.json", small=small), result)
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    if "--job" in sys.argv:
        print(json.dumps(work(json.loads(sys.argv[-1]))))
    else:
        main()
