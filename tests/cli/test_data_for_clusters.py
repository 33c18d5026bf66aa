"""`inspect` and `meter` take data in place of a clusters folder: one command shows the pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from clip_negatives.cli import main
from tests.pairs import write_csv, write_table, write_tars

N = 64


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a temporary folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["csv", "embedded", "webdataset"])
def test_one_command_shows_the_pairs_of_data_with_other_columns(kind: str) -> None:
    data = write_tars(Path(), N) if kind == "webdataset" else str(write_table(Path("data"), kind, N))
    shown = CliRunner().invoke(main, ["inspect", data, "--batch-size", "32"])
    assert shown.exit_code == 0, shown.output
    assert "report/index.html (" in shown.stdout
    assert "Reading " in shown.stderr
    page = Path("report/index.html").read_text()
    assert "data:image/" in page
    assert "unreadable" not in shown.stdout


def test_meter_of_data_is_that_of_its_clusters() -> None:
    file = str(write_csv(Path(), N))
    method = ["--batch-size", "32", "--group-column", "item"]
    of_data = CliRunner().invoke(main, ["meter", file, *method])
    assert CliRunner().invoke(main, ["prepare", file, "clusters", "--group-column", "item"]).exit_code == 0
    of_clusters = CliRunner().invoke(main, ["meter", "clusters", "--batch-size", "32"])
    assert of_data.exit_code == of_clusters.exit_code == 0
    assert of_data.stdout == of_clusters.stdout
    assert "same group" in of_data.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["inspect", "absent.csv"], "The csv file absent.csv does not exist"),
        (["inspect", "absent"], "Write one with clip-negatives prepare"),
        (["meter", "absent/{0..3}.tar"], "absent/0.tar does not exist"),
        (["meter", "empty"], "empty is a folder without metadata.csv"),
    ],
)
def test_what_is_neither_data_nor_clusters_is_one_sentence(line: list[str], words: str) -> None:
    Path("empty").mkdir()
    shown = CliRunner().invoke(main, line)
    assert shown.exit_code == 2
    assert words in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1


def test_few_samples_are_one_batch() -> None:
    file = str(write_csv(Path(), N))
    assert "batches of 64" in CliRunner().invoke(main, ["meter", file]).stdout
    assert CliRunner().invoke(main, ["inspect", file]).exit_code == 0


def test_a_folder_or_file_that_is_no_data_says_why() -> None:
    Path("pictures").mkdir()
    Path("pictures/a.png").touch()
    Path("products.xlsx").touch()
    for name, words in (("pictures", "Add metadata.csv with the columns file_name and text"), ("products.xlsx", "end in .csv")):
        shown = CliRunner().invoke(main, ["inspect", name])
        assert shown.exit_code == 2
        assert words in shown.stderr
