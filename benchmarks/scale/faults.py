"""Run the commands of docs/scale.md on S3 whose requests fail now and then: python benchmarks/scale/faults.py [--small].

The commands read and write tars, features and assignments at a server of S3 on this machine, through a proxy that fails one
request in fifty. Everything that they write must be what they write on a disk, except for the addresses of the tars.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fsspec
import pyarrow.parquet as pq
from run import result_file, write_json
from tasks import write_tars

SHARE = 0.02  # of the requests that fail
SIDE = 64  # pixels of the sides of an image
NOT_COMPARED = ("plan.json", "labels.json", "part.json")  # they have addresses and times
KEYS = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "10"}


def main() -> None:
    """Run all commands on a disk and on S3, compare what they wrote, and write the result file."""
    small = "--small" in sys.argv
    n, per_tar = (400, 50) if small else (100_000, 2000)
    with tempfile.TemporaryDirectory() as name, faulty_store() as address:
        home = Path(name)
        write_tars(home / "tars", n, per_tar, SIDE)
        os.environ.update({f"AWS_{key}": value for key, value in {**KEYS, "ENDPOINT_URL": address}.items()})
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        store.put(str(home / "tars"), "bucket/tars", recursive=True)
        tars = f"tars/{{000000..{(n - 1) // per_tar:06d}}}.tar"
        for _ in run(home, home, str(home), tars, per_tar, address):  # on the disk
            pass
        (home / "work").mkdir()
        rows = []
        for row in run(home, home / "work", "s3://bucket", tars, per_tar, address):
            print(row, flush=True)
            rows.append(row)
        names = ("parts", "assignments", "shards")
        same = {place: contents(str(home / place)) == contents(f"s3://bucket/{place}") for place in names}
        assert all(same.values()), same
    about = {"n": n, "tars": -(-n // per_tar), "share": SHARE, "same": same}
    write_json(result_file("scale-faults.json", small=small), {**about, "rows": rows})


def run(home: Path, local: Path, place: str, tars: str, per_tar: int, address: str) -> Iterator[dict[str, Any]]:
    """Run the commands of independent tasks, and yield what each took; `local` gets what only a disk can hold."""
    encoders = ("--image-encoder", "pixels:dim=0", "--text-encoder", "hashing:dim=64", "--feature-dtype", "float16")
    centroids = f"{local}/centroids/image.npy,{local}/centroids/text.npy"
    commands = [
        *(("encode", f"{place}/{tars}", f"{place}/parts", *encoders, "--task", f"{number}/2") for number in (1, 2)),
        ("centroids", f"{place}/parts", f"{local}/centroids", "--clusterer", "kmeans:n_clusters=16"),
        ("assign", f"{place}/parts", f"{local}/centroids", f"{place}/assignments", "--task", "1/1"),
        ("labels", f"{local}/labels", "--from", f"{place}/assignments", "--centroids", centroids),
        (
            *("reshard", f"{place}/{tars}", f"{local}/labels", f"{place}/shards"),
            *("--samples-per-shard", str(per_tar), "--work-folder", str(local / "waiting")),
        ),
    ]
    for command in commands:
        before, start = counts(address), time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "clip_negatives", *command], cwd=home, stdout=subprocess.DEVNULL
        ) as running:
            _, status, usage = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
        assert running.returncode == 0, command
        after = counts(address)
        traffic = {key: after[key] - before.get(key, 0) for key in after}
        seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        yield {"command": command[0], **seconds, **traffic}


def contents(folder: str) -> dict[str, bytes | list[dict[str, Any]]]:
    """Return all files of a folder, except for those with addresses and times; addresses of tars are replaced by names."""
    system, path = fsspec.core.url_to_fs(folder)
    files = {file.removeprefix(path): file for file in system.find(path)}
    kept = {name: file for name, file in files.items() if not name.endswith(NOT_COMPARED) and "/claims/" not in name}
    # The name of a part ends with a digest of the address of its tar.
    by_tar = {re.sub("-[0-9a-f]{16}/", "/", name): system.cat_file(file) for name, file in kept.items()}
    assert len(by_tar) == len(kept), "two tars have the same name"
    return {
        name: rows_of(file) if name.endswith(("samples.parquet", "assignments.parquet")) else file
        for name, file in by_tar.items()
    }


def rows_of(file: bytes) -> list[dict[str, Any]]:
    """Return the rows of a table; the column of tars has their names instead of their addresses."""
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(file)).to_pylist()
    return [{**row, "shard": Path(row["shard"]).name} for row in rows]


@contextmanager
def faulty_store() -> Iterator[str]:
    """Run the server, and yield its address."""
    command = [sys.executable, str(Path(__file__).with_name("faulty_store.py")), str(SHARE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def counts(address: str) -> Mapping[str, int]:
    """Return what the server has seen."""
    with urllib.request.urlopen(f"{address}/counts") as answer:
        seen: dict[str, int] = json.loads(answer.read())
    return seen


if __name__ == "__main__":
    main()
