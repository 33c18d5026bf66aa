"""What each command takes for a billion pairs in independent tasks: time, traffic, memory and price, from measured rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from page_parts import ABOUT
from sections import table

from clip_negatives.pipelines.assigned_parts import COSINES_AT_ONCE
from clip_negatives.storage import sample_buckets, shard_buckets

N, D, K, SHARDS = 10**9, 512, 100_000, 100_000  # the planned data: pairs, length of a feature, clusters of each side, tars
IMAGE_BYTES, SAMPLE_BYTES = 20_000, 100  # of an image in a tar, and of key and caption in a table
SAMPLE, ITERATIONS = 256, 25  # defaults of `centroids` and kmeans: rows per cluster that train the centroids, and iterations
TASKS, CORES, BANDWIDTH = 100, 16, 1e9  # tasks at a time, cores of a task, and bytes that a task reads or writes a second
CORE_HOUR, READS, WRITES = 0.05, 0.0004e-3, 0.005e-3  # dollars for a core's hour, a request that reads, and one that writes
HOUR = 3600.0
ROW_BYTES = 40  # of a row in a bucket of `reshard`

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """What a command takes for all pairs; `memory` is that of one task, and `tasks` how many work at a time."""

    name: str
    core_seconds: float
    bytes_read: float
    bytes_written: float
    requests: float
    writes: float
    memory: float
    tasks: int = TASKS
    cores: int = CORES

    @property
    def seconds(self) -> float:
        """Return the time by the clock: the longer one of computing and moving data."""
        moving = (self.bytes_read + self.bytes_written) / (self.tasks * BANDWIDTH)
        return max(self.core_seconds / (self.tasks * self.cores), moving)

    @property
    def price(self) -> float:
        """Return dollars for the cores of all tasks, all the time, and for the requests."""
        cores = self.seconds / HOUR * self.tasks * self.cores * CORE_HOUR
        return cores + (self.requests - self.writes) * READS + self.writes * WRITES

    def row(self) -> list[str]:
        """Return the cells of the table."""
        traffic = [f"{value / 1e12:.2f}" for value in (self.bytes_read, self.bytes_written)]
        told = [f"{self.requests / 1e6:.1f}", f"{self.memory / 1e9:.1f}", f"{self.seconds / HOUR:.1f}", f"{self.price:,.0f}"]
        return [self.name, f"{self.core_seconds / HOUR:,.0f}", *traffic, *told]


def section(result: Mapping[str, Any]) -> str:
    """Return the section of the plan."""
    stages = stages_of(result)
    head = ["", "core hours", "TB read", "TB written", "million requests", "GB of memory a task", "hours", "dollars"]
    images, encode = IMAGE_BYTES / 1000, _largest(result["tasks"]["rows"], "encode")
    rates = result["rates"]["rows"]
    flat, levels = _assignment(result["kmeans"])
    memory = {row["case"]: row for row in result["memory"]["rows"]}
    numbers = {
        "rows": table([stage.row() for stage in stages], head),
        "total": sum(stage.price for stage in stages),
        "hours": sum(stage.seconds for stage in stages) / HOUR,
        "busy": 1000 / encode["per_second"],
        "ratio": flat / levels,
        "look_up": N / _largest(rates, "look up labels")["per_second"] / HOUR,
        "plan": N / _largest(rates, "plan of an epoch")["per_second"] / HOUR,
        "generate": N / _largest(rates, "generate")["per_second"] / HOUR,
        "labels": 10 * next(stage.seconds for stage in stages if "labels" in stage.name) / HOUR,
        "reshard_plan": memory["plan of reshard"]["peak"] * N / 1e9,
        "features": 4 * N * D / 1e12,
        "sampler": memory["our table, clusters and sampler"]["process"] * N / 1e9,
    }
    prices = {"core": CORE_HOUR, "reads": READS * 1e6, "writes": WRITES * 1e6}
    assumed = {"image": images, "tasks": TASKS, "cores": CORES, "bandwidth": BANDWIDTH / 1e9, "sample": SAMPLE}
    return ABOUT["plan"].format(n=N, k=K, shards=SHARDS, **assumed, **prices, **numbers)


def stages_of(result: Mapping[str, Any]) -> list[Stage]:
    """Return the commands in their order."""
    rows, rates = result["tasks"]["rows"], result["rates"]["rows"]
    of = {step: _largest(rows, step) for step in ("encode", "centroids", "assign", "labels of tasks")}
    flat, levels = _assignment(result["kmeans"])
    data, features, sampled = N * IMAGE_BYTES, 4 * N * D, 2 * SAMPLE * K
    centroids, cosines = 2 * 4 * K * D, 4 * COSINES_AT_ONCE
    return [
        Stage(
            "`encode`, but for the encoders",
            N / of["encode"]["per_second"],
            data,
            features + SAMPLE_BYTES * N,
            *_requests(of["encode"]),
            memory=_bytes(of["encode"]) + 4 * D * N / SHARDS,
        ),
        Stage(
            "`centroids`, in two levels, both sides",
            sampled * ITERATIONS * levels,
            features,  # rows less than 64 KiB apart are read in one request
            centroids,
            *_requests(of["centroids"]),
            memory=4 * sampled / 2 * D,
            tasks=1,
        ),
        Stage(
            "`assign`, both sides",
            2 * N * flat,
            features,
            _a_pair(of["assign"], "bytes_written") * N,
            *_requests(of["assign"]),
            memory=centroids + cosines + 4 * D * N / SHARDS,
        ),
        Stage(
            "`labels --from`",
            N / of["labels of tasks"]["per_second"],
            _a_pair(of["assign"], "bytes_written") * N,
            _a_pair(of["assign"], "bytes_written") * N,
            0,
            0,
            memory=N / shard_buckets.MAX_BUCKETS * 200,
            tasks=1,
            cores=1,
        ),
        Stage(
            "`reshard`",
            N / _largest(rates, "reshard")["per_second"],
            data,
            data,
            *_requests(_largest(rates, "reshard in an object store")),
            memory=ROW_BYTES * N / sample_buckets.MAX_BUCKETS,
        ),
    ]


def _assignment(kmeans: Mapping[str, Any]) -> tuple[float, float]:
    """Return the core seconds in which a row finds its cluster among K, in one level and in two."""
    d, rows = kmeans["size"]["d"], [row for row in kmeans["rows"] if row["by"] == "kmeans" and "options" not in row]
    largest, cells = max(rows, key=lambda row: row["n"]), round(K**0.5)
    trained = min(largest["n"], SAMPLE * largest["k"]) * ITERATIONS
    speed = (trained + largest["n"]) * largest["k"] * d / largest["processor_seconds"]  # products a second
    return K * D / speed, (cells + K / cells) * D / speed


def _largest(rows: Rows, step: str) -> Mapping[str, Any]:
    """Return the measurement of a step at the largest size."""
    return max((row for row in rows if row["step"] == step), key=lambda row: row["n"])


def _a_pair(row: Mapping[str, Any], name: str) -> float:
    return float(row[name]) / float(row["n"])


def _bytes(row: Mapping[str, Any]) -> float:
    return float(row["mib"]) * 2**20


def _requests(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the requests for all tars, and how many of them write; each tar takes as many as a measured one."""
    return row["requests"] / row["tars"] * SHARDS, row.get("writes", 0) / row["tars"] * SHARDS
