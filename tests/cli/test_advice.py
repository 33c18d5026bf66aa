"""An error message names an option only if the command that ran has it, and in Python the argument of the function."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from clip_negatives import Columns
from clip_negatives.cli import main
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import ClipNegativesError
from clip_negatives.integrations.open_clip import TrainOptions, arguments, train
from clip_negatives.pipelines.reshard import reshard
from clip_negatives.report import write_inspection
from clip_negatives.scaffold import new_plugin
from clip_negatives.storage.clusters_folder import read_clusters
from tests.pairs import write_csv, write_tars

N = 64
TRAIN = ["--", "--train-data", "pairs.csv", "--model", "clip-negatives-tiny", "--batch-size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with csv data, tars, and clusters of both."""
    folder = tmp_path_factory.mktemp("data")
    write_csv(folder, N)
    (folder / "tars").mkdir()
    (folder / "noted.txt").write_text((folder / "pairs.csv").read_text())
    for data, name in ((folder / "pairs.csv", "clusters"), (write_tars(folder / "tars", N), "tar-clusters")):
        done = CliRunner().invoke(main, ["prepare", str(data), str(folder / name), "--clusterer", "kmeans:n_clusters=6"])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(folder / "cache"))


def options_of(command: str) -> set[str]:
    with click.Context(main) as context:
        found = main.get_command(context, command)
    assert found is not None
    names = {name for parameter in found.params for name in parameter.opts}
    if "open_clip_arguments" in {parameter.name for parameter in found.params}:
        names |= {f"--{name.replace('_', '-')}" for name in vars(arguments.parsed([]))}
    return names


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["prepare", "pairs.csv", "out", "--csv-separator", ","], "Use --separator"),
        (["prepare", "pairs.csv", "out", "--csv-caption-key", "x"], "Correct --caption-key"),
        (["prepare", "pairs.csv", "out", "--group-column", "x"], "Correct --group-column"),
        (["prepare", "tars/{0..0}.tar", "out", "--dataset-type", "csv"], "does not exist"),
        (["prepare", "noted.txt", "out"], "name the format with --dataset-type"),
        (["inspect", "clusters", "--data", "noted.txt"], "name the format with --dataset-type"),
        (["inspect", "clusters", "--data", "pairs.csv", "--csv-img-key", "x"], "Correct --image-key"),
        (["inspect", "clusters", "--batch-size", "32", "--pairs", "0"], "--pairs must be at least 1"),
        (["inspect", "clusters", "--batch-size", "65"], "--batch-size must be within 2 .. 64"),
        (["inspect", "tar-clusters", "--batch-size", "32", "--data", "pairs.csv"], "The data of --data (64 pairs)"),
        (["train", *TRAIN, "--csv-separator", ";"], "Use --csv-separator"),
        (["train", *TRAIN, "--csv-img-key", "x"], "Correct --csv-img-key"),
        (["train", "--refresh-every", "0", *TRAIN], "--refresh-every must be at least 1"),
        (["train", *TRAIN, "--batch-size", "1000"], "Use a smaller --batch-size"),
        (["compare", "--test-data", "pairs.csv", *TRAIN, "--csv-caption-key", "x"], "Correct --csv-caption-key"),
        (["compare", "--test-data", "pairs.csv", "--group-column", "x", *TRAIN], "Correct --group-column"),
        (["compare", "--test-data", "noted.txt", *TRAIN], "name the format with --dataset-type"),
        (["compare", *TRAIN], "Add --test-data"),
        (["reshard", "absent.tar", "tar-clusters", "out"], "The tar absent.tar does not exist"),
        (["labels", "clusters", "out"], "Run clip-negatives prepare on the tars"),
    ],
    ids=" ".join,
)
def test_messages_name_options_of_the_command(line: list[str], words: str) -> None:
    shown = CliRunner().invoke(main, line)
    assert shown.exit_code == 2, shown.output
    assert words in shown.stderr
    own, *others = re.split(r"clip-negatives ([a-z]+)", shown.stderr)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", own)) <= options_of(line[0])
    for command, text in zip(others[::2], others[1::2], strict=True):
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options_of(command)


def test_messages_name_arguments_in_python(tmp_path: Path) -> None:
    clusters = read_clusters("clusters")
    calls = {
        r"Use Columns\(separator=\.\.\.\)": lambda: open_pairs("pairs.csv", Columns(separator=",")),
        r"Correct Columns\(image=\.\.\.\)": lambda: open_pairs("pairs.csv", Columns(image="x")),
        r"name the format with dataset_type=": lambda: open_pairs("noted.txt"),
        r"samples_per_shard= must": lambda: reshard("x.tar", "tar-clusters", tmp_path / "out", samples_per_shard=0),
        r"batch_size= must be within": lambda: write_inspection(clusters, tmp_path / "out", batch_size=1000),
        r"The data of source= ": lambda: write_inspection(
            read_clusters("tar-clusters"), tmp_path / "out", batch_size=32, source=open_pairs("pairs.csv")
        ),
        r"refresh_every= must": lambda: train(TRAIN[1:], TrainOptions(refresh_every=0)),
        r"Use --csv-separator": lambda: train([*TRAIN[1:], "--csv-separator", ";"], TrainOptions("in_batch", "uniform")),
        r"with directory=\.": lambda: [new_plugin("mine", directory=tmp_path) for _ in range(2)],
    }
    for words, call in calls.items():
        with pytest.raises(ClipNegativesError, match=words):
            call()
