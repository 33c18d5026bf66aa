"""The commands that make and use a clusters folder, as the manual shows them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from clip_negatives import read_clusters
from clip_negatives.cli import main
from tests.pairs import write_csv, write_tars

DOCS = Path(__file__).resolve().parents[2] / "docs"
N = 64


def run(*arguments: object, code: int = 0) -> Result:
    """Run a command and make sure of its exit code."""
    shown = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert shown.exit_code == code, shown.output
    return shown


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands in a folder of their own."""
    monkeypatch.chdir(tmp_path)


def _prepared() -> None:
    write_csv(Path(), N)
    run("prepare", "pairs.csv", "clusters", "--clusterer", "kmeans:n_clusters=6", "--group-column", "item")


def test_prepare_says_what_it_made() -> None:
    write_csv(Path(), N)
    shown = run("prepare", "pairs.csv", "clusters", "--clusterer", "kmeans:n_clusters=6")
    assert shown.stdout == "clusters: 64 pairs, 6 image clusters, 6 text clusters\n"


def test_prepare_reads_csv_and_tars_by_the_options_of_open_clip() -> None:
    write_csv(Path(), N, separator=";")
    Path("pairs.csv").write_text(Path("pairs.csv").read_text().replace("filepath;title", "image;caption"))
    columns = ["--csv-separator", ";", "--csv-img-key", "image", "--csv-caption-key", "caption"]
    run("prepare", "pairs.csv", "one", *columns, "--group-column", "item", "--clusterer", "kmeans:n_clusters=6")
    run("prepare", write_tars(Path(), N), "two", "--group-column", "item", "--clusterer", "kmeans:n_clusters=6")
    one, two = read_clusters("one"), read_clusters("two")
    assert one.samples.select(["text", "group"]).equals(two.samples.select(["text", "group"]))
    assert one.clusters.image.labels.equal(two.clusters.image.labels)


def test_features_can_be_dropped() -> None:
    write_csv(Path(), N)
    run("prepare", "pairs.csv", "clusters", "--drop-features", "--clusterer", "kmeans:n_clusters=6")
    assert read_clusters("clusters").clusters.image_features is None


def test_generate() -> None:
    _prepared()
    shown = run("generate", "clusters", "--per-image", 2, "-o", "pairs.parquet")
    assert shown.stdout == "pairs.parquet: 128 incorrect pairs\n"
    assert pq.read_metadata("pairs.parquet").num_rows == 2 * N


def test_inspect() -> None:
    _prepared()
    Path("images").rename("moved")
    shown = run("inspect", "clusters", "--batch-size", 32, "--pairs", 3, "--clusters-shown", 1, "-o", "report")
    assert "report/index.html (" in shown.stdout
    assert "samples shown, " in shown.stdout
    assert "images unreadable" in shown.stdout


def test_meter_shows_every_word_in_a_pipe_and_writes_json() -> None:
    _prepared()
    shown = run("meter", "clusters", "--batch-size", 32, "--threshold", 0.5, "--json", "reading.json")
    reading = json.loads(Path("reading.json").read_text())
    assert reading["batch_size"] == 32
    for suspect in reading["suspects"]:
        assert suspect["kind"] in shown.stdout
        assert f"{suspect['share']:.3%}" in shown.stdout
    for treatment in reading["treatments"]:
        assert treatment["sampler"] in shown.stdout
        assert treatment["weighting"] in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "pairs.csv", "clusters", "--csv-caption-key", "caption"], "'filepath', 'title', 'item'"),
        (["prepare", "pairs.csv", "clusters", "--csv-separator", ","], "Use --separator"),
        (["prepare", "pairs.csv", "images"], "it has files, but no manifest.json"),
        (["prepare", "pairs.csv", "pairs.csv/clusters"], "cannot be written"),
        (["prepare", "pairs.csv", "clusters", "--image-encoder", "pixel"], "Did you mean 'pixels'"),
        (["prepare", "pairs.csv", "clusters", "--clusterer", "kmeans:n_clusters=65"], "more than the number of samples"),
        (["meter", "clusters", "--batch-size", "65"], "batch size within 2 .. 64"),
        (["inspect", "clusters", "--batch-size", "1"], "--batch-size must be within 2 .. 64"),
        (["inspect", "clusters", "-o", "images", "--batch-size", "32"], "it has files, but no report.json"),
        (["inspect", "clusters", "--batch-size", "32", "--data", "absent.csv"], "absent.csv does not exist"),
        (["inspect", "clusters", "--batch-size", "32", "--sampler", "in_bach"], "Did you mean 'in_batch'"),
        (["generate", "clusters", "--per-image", "0"], "per_image must be at least 1"),
        (["generate", "clusters", "-o", "pairs.csv/pairs.parquet"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    _prepared()
    shown = run(*arguments, code=2)
    assert words in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert "Traceback" not in shown.output


@pytest.mark.parametrize("page", ["generate", "meter", "inspect"])
def test_page_of_the_manual_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / f"{page}.md").read_text()
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(compile(block, page, "exec"), {})
            assert capsys.readouterr().out
        elif language == "bash":
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "clip-negatives"
                run(*arguments)
