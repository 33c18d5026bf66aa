"""Each command reads data at each kind of address: the table of docs/data.md, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from clip_negatives import read_clusters
from clip_negatives.cli import main
from clip_negatives.compare import reuse, run
from clip_negatives.dataset import open_pairs, web
from clip_negatives.errors import DataError
from clip_negatives.features.npy import NpyFeatures
from clip_negatives.storage.labels_folder import read_labels
from tests.pairs import write_csv, write_tars
from tests.servers import faulty_server, s3_server, upload, use_s3

N, SHARDS = 48, 4
BRACES = "pairs-{000000..000003}.tar"

RUN = [
    *("--model", "clip-negatives-tiny", "--batch-size", "8", "--epochs", "1", "--warmup", "1", "--workers", "0"),
    *("--precision", "fp32", "--device", "cpu", "--log-every-n-steps", "1", "--logs", "logs", "--name", "run"),
]
FOUR = ["--clusterer", "kmeans:n_clusters=4"]
STREAM = ["--train-num-samples", str(N), "--dataset-type", "webdataset"]

FAULTS = ("503", "closed", "cut", "short")  # of the faulty server

TARS = {
    "s3": f"s3://bucket/{BRACES}",
    "http": f"HTTP/none/{BRACES}",
    "several kinds": "LOCAL/pairs-000000.tar::s3://bucket/pairs-000001.tar::HTTP/none/pairs-000002.tar::"
    "pipe:cat LOCAL/pairs-000003.tar",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same pairs in tars, csv, jsonl and parquet, and their features."""
    folder = tmp_path_factory.mktemp("data")
    write_tars(folder, N, shards=SHARDS)
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
def place(folder: Path, s3: str, http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what the capital words of an address stand for; the working folder is empty, and pauses are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web, "PAUSES", (0.01, 0.01, 0.01))
    use_s3(s3, monkeypatch)
    return {"LOCAL": str(folder), "HTTP": http}


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
    _works("prepare", f"{place['LOCAL']}/{BRACES}", "clusters", *FOUR)
    return "clusters"


@pytest.mark.parametrize("kind", TARS)
def test_prepare_and_train_read_tars_at(kind: str, place: dict[str, str], clusters: str) -> None:
    """Training reads with one loader process, which is forked."""
    data = _at(TARS[kind], place)
    _works("prepare", data, "there", *FOUR)
    assert _texts("there") == _texts(clusters)
    options = ["--sampler", "in_batch", "--clusters", clusters]
    _works("train", *options, "--", "--train-data", data, "--val-data", data, *STREAM, *RUN, "--workers", "1")
    log = Path("logs/run/out.log").read_text()
    assert log.count("Contrastive_loss: ") == N // 8
    assert "Handling webdataset error" not in log


def test_check_reads_tars_at_addresses_of_several_kinds(place: dict[str, str]) -> None:
    _works("check", _at(TARS["several kinds"], place), *FOUR)


def test_labels_compare_tars_at_addresses_of_several_kinds(place: dict[str, str], clusters: str) -> None:
    folder = read_clusters(Path(clusters))
    table = {name: folder.samples[name].to_pylist() for name in ("key", "shard")}
    for side, clustering in (("image", folder.clusters.image), ("text", folder.clusters.text)):
        table[f"{side}_label"] = clustering.labels.tolist()
        np.save(f"{side}.npy", clustering.centroids.numpy())
    pd.DataFrame(table).to_parquet("table.parquet")
    given = ["--from", "table.parquet", "--centroids", "image.npy,text.npy"]
    _works("labels", "labels", *given, "--data", _at(TARS["several kinds"], place))
    sizes = [source.size for source in read_labels(Path("labels")).shards.sources.values()]
    local = [(Path(place["LOCAL"]) / f"pairs-{shard:06d}.tar").stat().st_size for shard in range(SHARDS)]
    assert sizes == [*local[:3], None]  # a command has no size
    absent = place["HTTP"] + "/none/absent"
    for option, location in (("--from", f"{absent}.parquet"), ("--centroids", f"{absent}.npy,text.npy")):
        fault = _fails("labels", "other", *given, option, location)
        assert re.search(rf"^The (table|npy file) {absent}\.\w+ cannot be read: 404, ", fault)


def _measured_here(job: run.Job) -> dict[str, Any]:
    """Run a job of a comparison in this process: a new one imports torch anew."""
    job.new.mkdir()
    return run.measure(job)


def test_compare_reads_tars_at_addresses_of_several_kinds(place: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "run", _measured_here)
    data = _at(TARS["several kinds"], place)
    chosen = ["--test-data", data, "--methods", "in_batch+uniform", "--seeds", "1", "--temperatures", "0.1"]
    _works("compare", *chosen, "--", "--train-data", data, *STREAM, *RUN[:-4])


@pytest.mark.parametrize("file", ["pairs.csv", "pairs.csv.gz", "pairs.jsonl", "pairs.parquet"])
def test_tables_are_read_at_s3_and_from_a_web_server_that_fails_at_first(file: str, place: dict[str, str]) -> None:
    expected = open_pairs(f"{place['LOCAL']}/{file}").texts
    assert len(expected) == N
    for address in ("s3://bucket", *(f"{place['HTTP']}/{fault}" for fault in FAULTS)):
        assert open_pairs(f"{address}/{file}").texts == expected
    for fault in FAULTS:
        url = f"{place['HTTP']}/{fault}/always/{file}"
        with pytest.raises(DataError, match=rf"^The \w+ file {url} cannot be read: .*Check that it is reachable"):
            open_pairs(url)


def test_features_are_read_at_s3_and_from_a_web_server_that_fails_at_first(place: dict[str, str]) -> None:
    expected = np.load(f"{place['LOCAL']}/images.npy")
    for address in ("s3://bucket", *(f"{place['HTTP']}/{fault}" for fault in FAULTS)):
        features = NpyFeatures.open([f"{address}/images.npy"])
        assert np.array_equal(np.concatenate([rows.numpy() for _, _, rows in features.blocks()]), expected)
    for fault in FAULTS:
        with pytest.raises(DataError, match=r"^The npy file http://\S+/images\.npy cannot be read: "):
            list(NpyFeatures.open([f"{place['HTTP']}/{fault}/always/images.npy"]).blocks())


def test_features_centroids_and_assignments_of_tasks_at_s3(place: dict[str, str]) -> None:
    encoders = "--image-encoder", "pixels:size=4,dim=0", "--text-encoder", "hashing:dim=8"
    _works("encode", _at(TARS["s3"], place), "s3://bucket/tasks/parts", *encoders, "--task", "1/1")
    centroids = "s3://bucket/tasks/centroids"
    for _ in range(2):  # the second time replaces the first
        _works("centroids", "s3://bucket/tasks/parts", centroids, "--clusterer", "kmeans:n_clusters=2")
    _works("assign", "s3://bucket/tasks/parts", centroids, "s3://bucket/tasks/assignments", "--task", "1/1")
    files = f"{centroids}/image.npy,{centroids}/text.npy"
    _works("labels", "task-labels", "--from", "s3://bucket/tasks/assignments", "--centroids", files)
    assert read_labels("task-labels").image.n_clusters == 2
    fault = _fails("centroids", "s3://bucket/tasks/parts", "s3://bucket/tasks/parts", "--clusterer", "kmeans:n_clusters=2")
    assert "s3://bucket/tasks/parts has files, but no centroids.json of clip-negatives. Name another URL." in fault


def test_prepare_takes_a_table_and_features_at_s3(place: dict[str, str]) -> None:
    given = ["--features", "s3://bucket/images.npy,s3://bucket/texts.npy"]
    _works("prepare", "s3://bucket/pairs.parquet", "there", *given, *FOUR)
    local = place["LOCAL"]
    _works("prepare", f"{local}/pairs.parquet", "here", "--features", f"{local}/images.npy,{local}/texts.npy", *FOUR)
    there, here = (read_clusters(Path(name)).clusters for name in ("there", "here"))
    assert there.image.labels.equal(here.image.labels)
    fault = _fails("prepare", "s3://bucket/pairs.parquet", "other", "--features", "s3://bucket/*.npy,")
    assert fault.startswith("s3://bucket/*.npy names no npy file: at a URL, --features takes no *")


def test_a_tar_that_cannot_be_read_ends_training_with_its_name(place: dict[str, str], clusters: str) -> None:
    """Two cannot be reached at the start; one breaks off later; the command of one fails before any output."""
    http, local = place["HTTP"], place["LOCAL"]
    whole = [f"{local}/pairs-00000{shard}.tar" for shard in range(3)]
    for last, fault, workers in (
        (f"{http}/404/always/pairs-000003.tar", "cannot be read: 404", "0"),
        ("s3://bucket/absent.tar", "does not exist", "0"),
        (f"{http}/short/always/pairs-000003.tar", "cannot be read: the server sent", "1"),
        ("pipe:cat absent-pairs-000003.tar", "its command failed with exit code 1", "0"),
    ):
        arguments = ["--train-data", "::".join([*whole, last]), *STREAM, *RUN, "--name", f"run-{len(last)}"]
        error = _fails("train", "--sampler", "in_batch", "--weighting", "uniform", "--", *arguments, "--workers", workers)
        assert error.startswith(f"The tar {last} ")
        assert fault in error


def test_training_goes_on_without_the_rest_of_a_torn_tar_and_says_so(place: dict[str, str]) -> None:
    tars = [f"{place['LOCAL']}/pairs-00000{shard}.tar" for shard in range(SHARDS)]
    data = "::".join([*tars, f"pipe:head -c 20000 {tars[0]}; exit 3"])
    options = ["train", "--sampler", "in_batch", "--weighting", "uniform", "--"]
    _works(*options, "--train-data", data, *STREAM, *RUN)
    assert "its command failed with exit code 3" in Path("logs/run/out.log").read_text()


def test_tars_without_a_file_that_can_be_read_end_training(place: dict[str, str]) -> None:
    """webdataset would begin again for ever."""
    Path("torn.tar").write_bytes(b"no tar" * 999)
    options = ["train", "--sampler", "in_batch", "--weighting", "uniform", "--"]
    for workers in ("0", "1"):
        named = ["--name", f"run-{workers}", "--workers", workers]
        error = _fails(*options, "--train-data", "torn.tar", *STREAM, *RUN, *named)
        assert error == "The tar torn.tar has no file that can be read. Repair the data, or remove these tars from them."
