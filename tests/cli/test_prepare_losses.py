"""`prepare` says what it lost, and ends with an error if it lost too much."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from clip_negatives.cli import main
from tests.pairs import write_tar, write_tars

N, EACH = 60, 20
OPTIONS = ("--image-encoder", "pixels:dim=8", "--text-encoder", "tfidf:dim=8", "--clusterer", "kmeans:n_clusters=4")


def run(*arguments: object, code: int = 0) -> Result:
    """Run a command and make sure of its exit code."""
    shown = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert shown.exit_code == code, shown.output
    return shown


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return two tars, one of which comes from a command that fails silently in the middle, and a tar with broken samples."""
    monkeypatch.chdir(tmp_path)
    write_tars(Path(), N, shards=3)
    half = Path("pairs-000001.tar").stat().st_size // 2
    bare = {"x.png": b"no image", "x.txt": b"text", "y.png": b"no image", "z.txt": b"text"}
    write_tar(Path("bare.tar"), bare)
    return f"pairs-{{000000,000002}}.tar::pipe:head -c {half} pairs-000001.tar || true::bare.tar"


def test_torn_tars_are_said_apart_from_broken_samples(data: str) -> None:
    refused = run("prepare", data, "clusters", "--dataset-type", "webdataset", *OPTIONS, code=2)
    lost = refused.stderr.split("samples; about ")[1].split(" ")[0]
    start = f"Error: {int(lost) + 1} of "
    assert start in refused.stderr
    assert "samples; about " in refused.stderr
    assert "are lost, more than 1.00%: 1 torn tar (pipe:head" in refused.stderr
    assert "and 1 broken sample (first: x: the image cannot be read)" in refused.stderr
    percent = refused.stderr.rstrip().rpartition(" ")[2]
    assert f"or accept the loss with --max-lost {percent}" in refused.stderr
    shown = run("prepare", data, "clusters", "--dataset-type", "webdataset", *OPTIONS, "--max-lost", percent.rstrip("."))
    lines = shown.stderr.splitlines()[1:]
    assert lines[:4] == [
        "Left out: 3 samples, listed in clusters/broken.parquet",
        "  1: the image cannot be read (first: x)",
        "  1: no .txt, only .png (first: y)",
        "  1: no image, only .txt (first: z)",
    ]
    assert lines[4] == "Torn: 1 tar, listed in clusters/broken.parquet. The same command reads only the torn tars again."
    assert lines[5].startswith("  pipe:head")
    assert lines[5].endswith(f"about {lost} samples are lost, estimated from the mean of the other tars")
    table = pq.read_table("clusters/broken.parquet").to_pydict()
    assert table["samples"] == [1, 1, 1, int(lost)]
    manifest = json.loads(Path("clusters/manifest.json").read_text())
    assert (manifest["n_broken"], manifest["n_torn"]) == (3, 1)
    again = run("meter", "clusters", "--batch-size", 32)
    assert "false negative" in again.output


@pytest.mark.parametrize(("share", "code"), [("100%", 0), ("1", 0), ("0.5", 0), ("0%", 2), ("0.01", 2)])
def test_a_share_is_a_number_or_a_percentage(data: str, share: str, code: int) -> None:
    run("prepare", data, "clusters", "--dataset-type", "webdataset", *OPTIONS, "--max-lost", share, code=code)
    assert Path("clusters").exists() == (code == 0)


@pytest.mark.parametrize("share", ["2", "101%", "-1%", "x", "nan"])
def test_other_shares_are_refused(data: str, share: str) -> None:
    refused = run("prepare", data, "clusters", f"--max-lost={share}", code=2)
    assert f"{share!r} is not a share. Write for example 1% or 0.01." in refused.stderr
