"""`prepare` leaves out missing tars if it may, names them, and reads them when they are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_negatives.batches.streams import TextStage
from clip_negatives.cli import main
from clip_negatives.features import missing_parts
from clip_negatives.storage.clusters_folder import read_clusters
from clip_negatives.storage.labels_folder import read_labels
from clip_negatives.storage.provenance import clusters_section
from clip_negatives.storage.shards import ClusteredShards, ShardRows
from tests import ranks
from tests.pairs import write_tars

N, EACH = 60, 20
DATA = "pairs-{000000..000003}.tar"
OPTIONS = ("--image-encoder", "pixels:dim=8", "--text-encoder", "tfidf:dim=8", "--clusterer", "kmeans:n_clusters=4")


def run(*arguments: object, code: int = 0) -> Result:
    """Run a command and make sure of its exit code."""
    shown = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert shown.exit_code == code, shown.output
    return shown


def prepare(*options: object, data: str = DATA, code: int = 0) -> Result:
    """Run `prepare` on the tars."""
    return run("prepare", data, "clusters", *OPTIONS, *options, code=code)


@pytest.fixture(autouse=True)
def tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write four tars, and take the second and the last one away."""
    monkeypatch.chdir(tmp_path)
    write_tars(Path(), 4 * EACH, shards=4)
    Path("away").mkdir()
    for number in (1, 3):
        shutil.move(f"pairs-00000{number}.tar", "away")


def test_a_missing_tar_is_an_error_that_names_the_option() -> None:
    shown = prepare(code=2)
    assert shown.stderr == (
        "Error: The tar pairs-000001.tar does not exist. Check its path. To leave out this tar, use --max-missing-shards 1.\n"
    )
    remote = prepare(data="pairs-000000.tar::memory://none/a.tar", code=2)
    assert "The tar memory://none/a.tar does not exist. Check its path. To leave out this tar" in remote.stderr


@pytest.mark.parametrize("most", ["1", "49%"])
def test_more_missing_tars_than_allowed(most: str) -> None:
    shown = prepare("--max-missing-shards", most, code=2)
    assert "2 of 4 tars are missing, more than 1. The first: The tar pairs-000001.tar does not exist." in shown.stderr
    assert shown.stderr.endswith("To leave out these tars, use --max-missing-shards 2.\n")
    assert not Path("clusters").exists()


@pytest.mark.parametrize("most", ["-1", "x", "101%", "1.5", "%", ""])
def test_other_numbers_are_refused(most: str) -> None:
    shown = prepare(f"--max-missing-shards={most}", code=2)
    assert f"{most!r} is not a number of tars. Write for example 3 or 1%." in shown.stderr


@pytest.mark.parametrize("most", ["2", "50%"])
def test_missing_tars_are_left_out_and_named(most: str, caplog: pytest.LogCaptureFixture) -> None:
    shown = prepare("--max-missing-shards", most)
    names = ["pairs-000001.tar", "pairs-000003.tar"]
    said = [record.getMessage() for record in caplog.records]
    for name in names:
        assert any(f"The tar {name} does not exist. Check its path. It is left out." in line for line in said)
    assert "Missing: 2 tars, listed in clusters/manifest.json." in shown.stderr
    folder = read_clusters(Path("clusters"))
    assert (folder.clusters.n_samples, folder.manifest["missing_shards"]) == (2 * EACH, names)
    assert clusters_section(folder.manifest)["missing_shards"] == names
    run("labels", "clusters", "labels")
    assert read_labels("labels").manifest["missing_shards"] == names
    run("reshard", DATA, "clusters", "resharded", "--samples-per-shard", EACH)


def test_the_next_run_reads_tars_that_have_appeared() -> None:
    prepare("--max-missing-shards", 2)
    shutil.copy("away/pairs-000001.tar", ".")
    prepare("--max-missing-shards", 1)
    assert json.loads(Path("clusters/manifest.json").read_text())["missing_shards"] == ["pairs-000003.tar"]
    shutil.copy("away/pairs-000003.tar", ".")
    prepare()
    run("prepare", DATA, "expected", *OPTIONS)
    whole, expected = (json.loads(Path(folder, "manifest.json").read_text()) for folder in ("clusters", "expected"))
    for manifest in (whole, expected):
        del manifest["created"]
    assert whole == expected
    assert "missing_shards" not in whole
    assert not list(Path().glob(".*"))


def test_a_tar_that_goes_away_while_it_is_read_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is used, and the next run reads it again."""
    encode_images = missing_parts.encode_images

    def encode(part: object, *options: object) -> None:
        if part.name == "pairs-000002.tar":
            shutil.move(part.name, "away")
        encode_images(part, *options)

    data = "pairs-{000000,000002}.tar"
    with monkeypatch.context() as patch:
        patch.setattr(missing_parts, "encode_images", encode)
        assert "use --max-missing-shards 1" in prepare(data=data, code=2).stderr
        shutil.move("away/pairs-000002.tar", ".")
        prepare("--max-missing-shards", 1, data=data)
    assert json.loads(Path("clusters/manifest.json").read_text())["missing_shards"] == ["pairs-000002.tar"]
    shutil.move("away/pairs-000002.tar", ".")
    prepare(data=data)
    assert read_clusters(Path("clusters")).clusters.n_samples == 2 * EACH


def test_processes_share_the_missing_tars(tmp_path: Path) -> None:
    """One process writes the labels: all processes would replace the same folder."""
    prepare("--max-missing-shards", 2)
    run("labels", "clusters", "expected")
    lines = (
        ["prepare", DATA, "shared", *OPTIONS, "--max-missing-shards", 1],
        ["prepare", DATA, "shared", *OPTIONS, "--max-missing-shards", 2],
        ["labels", "shared", "labels"],
    )
    first, *others = ranks.run(3, ranks.commands, *lines, log=tmp_path / "log")
    codes = [line for line in first.splitlines() if line.startswith("exit code")]
    assert codes == ["exit code 2", "exit code 0", "exit code 0"]
    assert read_clusters("shared").manifest["missing_shards"] == ["pairs-000001.tar", "pairs-000003.tar"]
    assert first.count("labels of 40 samples in 2 shards") == 1
    assert not any("labels of" in said for said in others)
    names = sorted(file.relative_to("labels") for file in Path("labels").rglob("*.parquet"))
    assert all(Path("labels", name).read_bytes() == Path("expected", name).read_bytes() for name in names)


def test_a_stream_skips_samples_of_missing_tars() -> None:
    prepare("--max-missing-shards", 2)
    folder = read_clusters(Path("clusters"))
    rows = ShardRows.of(folder)
    shards = ClusteredShards.of(folder)
    shards.check(["pairs-000000.tar", "pairs-000001.tar"])
    stage = TextStage(shards, rows.left_out(folder.broken))
    samples = [{"__url__": f"pairs-00000{number}.tar", "__key__": "a", "txt": b""} for number in range(3)]
    assert [sample["__url__"] for sample in stage(samples)] == ["pairs-000000.tar", "pairs-000002.tar"]
