"""Each command reads data at each kind of address: the table of docs/data.md, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from clip_negatives import read_clusters
from clip_negatives.cli import main
from clip_negatives.compare import reuse, run
from clip_negatives.dataset import web
from tests.pairs import write_csv, write_tars
from tests.servers import faulty_server, s3_server, upload, use_s3

N = 48
BRACES = "pairs-{000000..000001}.tar"
FIRST, SECOND = "pairs-000000.tar", "pairs-000001.tar"
RUN = [
    *("--model", "clip-negatives-tiny", "--batch-size", "8", "--epochs", "1", "--warmup", "1", "--workers", "0"),
    *("--precision", "fp32", "--device", "cpu", "--log-every-n-steps", "1", "--logs", "logs", "--name", "run"),
]
STREAM = ["--train-num-samples", str(N), "--dataset-type", "webdataset"]

TARS = {
    "a local path": f"LOCAL/{BRACES}",
    "a list": f"LOCAL/{FIRST}::LOCAL/{SECOND}",
    "s3": f"s3://bucket/{BRACES}",
    "http": f"HTTP/none/{BRACES}",
    "a command": f"pipe:cat LOCAL/{FIRST}::pipe:cat LOCAL/{SECOND}",
    "another file system of fsspec": f"memory://bucket/{BRACES}",
    "several kinds": f"s3://bucket/{FIRST}::HTTP/none/{SECOND}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same pairs in tars, csv, jsonl and parquet, and their features."""
    folder = tmp_path_factory.mktemp("data")
    write_tars(folder, N)
    frame = pd.read_csv(write_csv(folder, N), sep="\t")
    frame.to_csv(folder / "pairs.csv.gz", sep="\t", index=False)
    frame.to_parquet(folder / "pairs.parquet")
    frame.to_json(folder / "pairs.jsonl", orient="records", lines=True)
    generator = np.random.default_rng(0)
    for side in ("images", "texts"):
        np.save(folder / f"{side}.npy", generator.normal(size=(N, 8)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[str]:
    """Return the address of a server of S3 with the files of the folder in a bucket."""
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        use_s3(endpoint, patch)
        upload(folder, "bucket")
        yield endpoint


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[str]:
    """Return the address of a web server with the files of the folder."""
    with faulty_server({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}) as (address, _):
        yield address


@pytest.fixture
def place(folder: Path, s3: str, http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Return what the capital words of an address stand for; the working folder is empty, and pauses are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "PAUSES", (0.01, 0.01, 0.01))
    use_s3(s3, monkeypatch)
    memory = fsspec.filesystem("memory")
    for file in folder.glob("*.tar"):
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    yield {"LOCAL": str(folder), "HTTP": http}
    memory.rm("/bucket", recursive=True)


def _at(address: str, place: dict[str, str]) -> str:
    for word, value in place.items():
        address = address.replace(word, value)
    return address


def _run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    if result.exit_code not in (0, 2):
        raise AssertionError(result.output) from result.exception
    return result


def _works(*arguments: str) -> None:
    result = _run(*arguments)
    assert result.exit_code == 0, result.output


def _fails(*arguments: str) -> str:
    """Return the one line of the error."""
    result = _run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def _texts(clusters: str) -> list[str]:
    return read_clusters(Path(clusters)).samples["text"].to_pylist()


@pytest.fixture
def clusters(place: dict[str, str]) -> str:
    """Return a clusters folder of the local tars."""
    _works("prepare", _at(TARS["a local path"], place), "clusters", "--clusterer", "kmeans:n_clusters=4")
    return "clusters"


@pytest.mark.parametrize("kind", TARS)
def test_commands_read_tars_at(kind: str, place: dict[str, str], clusters: str) -> None:
    data = _at(TARS[kind], place)
    _works("prepare", data, "there", "--clusterer", "kmeans:n_clusters=4")
    assert _texts("there") == _texts(clusters)
    _works("check", data, "--clusterer", "kmeans:n_clusters=4", "--output", "check")
    _works("train", "--sampler", "in_batch", "--clusters", clusters, "--", "--train-data", data, *STREAM, *RUN)


def _measured_here(job: run.Job) -> dict[str, Any]:
    """Run a job of a comparison in this process: a new one imports torch anew."""
    job.new.mkdir()
    return run.measure(job)


def test_compare_reads_training_and_test_data_at(place: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of address in one comparison."""
    monkeypatch.setattr(reuse, "run", _measured_here)
    train, test = (_at(TARS[kind], place) for kind in ("several kinds", "a command"))
    chosen = ["--test-data", test, "--methods", "in_batch+uniform", "--seeds", "1", "--temperatures", "0.1"]
    _works("compare", *chosen, "--", "--train-data", train, *STREAM, *RUN[:-4])
