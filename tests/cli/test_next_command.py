"""The next command that each command prints: it can be copied, and it runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_negatives.cli import main
from clip_negatives.cli.next_command import numbered
from tests.pairs import write_csv, write_tars

N = 64
SMALL = ["--model", "clip-negatives-tiny", "--batch-size", "16", "--epochs", "1", "--workers", "0", "--precision", "fp32"]
SMALL += ["--device", "cpu"]


def run(*arguments: object) -> Result:
    shown = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return shown


def next_words(shown: Result) -> list[str]:
    """Return the words of the next command, which is the last line on stderr."""
    last = shown.stderr.splitlines()[-1]
    assert last.startswith("Next: clip-negatives ")
    assert "Next:" not in shown.stdout
    return shlex.split(last)[2:]


@pytest.fixture(autouse=True)
def in_a_folder_with_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))


def test_catalogue_leads_to_training() -> None:
    words = next_words(run("catalogue", "info"))
    assert words[:2] == ["catalogue", "export"]
    words = next_words(run(*words[:2], "the data", "--split", "unseen", "--format", "csv"))
    assert words == ["prepare", "the data/unseen.csv", "clusters/", "--group-column", "item"]
    words = next_words(run(*words))
    assert words == ["check", "clusters", "--data", "the data/unseen.csv", "--group-column", "item"]
    words = next_words(run(*words, "--no-choose"))
    assert words[:4] == ["train", "--clusters", "clusters", "--method"]
    assert words[5:] == ["--group-column", "item", "--", "--train-data", "the data/unseen.csv", "--model", "ViT-B-32"]


def test_options_of_the_user_are_repeated() -> None:
    write_csv(Path(), N)
    options = ["--group-column", "item", "--clusterer", "kmeans:n_clusters=4", "--batch-size", "16"]
    options += ["--sampler", "in_batch", "--weighting", "id_mask:by=text"]
    words = next_words(run("meter", "pairs.csv", *options, "--seed", "3", "--json", "reading.json"))
    assert words[:2] == ["inspect", "pairs.csv"]
    assert sorted(words[2:]) == sorted(options)
    words = next_words(run(*words))
    own = [
        "--group-column",
        "item",
        "--clusterer",
        "kmeans:n_clusters=4",
        "--weighting",
        "id_mask:by=text",
        "--sampler",
        "in_batch",
    ]
    assert words == ["train", *own, "--", "--train-data", "pairs.csv", "--model", "ViT-B-32"]


def test_training_leads_to_a_comparison_with_the_same_arguments() -> None:
    write_csv(Path(), N)
    own = ["--group-column", "item", "--clusterer", "kmeans:n_clusters=4"]
    arguments = ["--train-data", "pairs.csv", *SMALL]
    words = next_words(run("train", *own, "--", *arguments, "--name", "first", "--seed=3", "--logs", "runs"))
    assert words == ["compare", "--test-data", "TEST_DATA", *own, "--", *arguments]


def test_tars_lead_to_training_on_the_stream() -> None:
    Path("the tars").mkdir()
    tars = write_tars(Path("the tars"), N)
    words = next_words(run("prepare", tars, "clusters", "--clusterer", "kmeans:n_clusters=4"))
    assert words == ["check", "clusters", "--data", tars]
    words = next_words(run(*words, "--no-choose"))
    stream = ["--train-data", tars, "--model", "ViT-B-32", "--train-num-samples", str(N)]
    assert words == ["train", "--clusters", "clusters", "--method", "id_mask:by=text@0.1", "--", *stream]
    run(*words, *SMALL, "--dataset-type", "webdataset")
    words = next_words(run("labels", "clusters", "labels"))
    assert words[:6] == ["train", "--clusters", "labels", "--sampler", "in_batch", "--"]
    words = next_words(run("reshard", tars, "clusters", "new tars", "--samples-per-shard", "32"))
    assert words[:3] == ["train", "--clusters", "new tars/labels"]
    assert words[words.index("--train-data") + 1] == "new tars/{000000..000001}.tar"
    run(*words, *SMALL, "--dataset-type", "webdataset")
    words = next_words(run("generate", "clusters", "--sampler", "cluster_similarity:image_quantile=0.8"))
    assert words == ["inspect", "clusters", "--sampler", "cluster_similarity:image_quantile=0.8"]


def test_plugins() -> None:
    assert next_words(run("plugins")) == ["plugins", "show", "kmeans"]
    assert next_words(run("plugins", "show", "kmeans"))[-2:] == ["--clusterer", "kmeans"]
    assert next_words(run("plugins", "show", "blend")) == ["compare", "--quick", "--methods", "blend@0.1"]
    assert next_words(run("plugins", "show", "blend:learned_temperature=yes"))[-1] == "blend:learned_temperature=yes"
    assert run("plugins", "new", "my-sampler").stderr == "Next: pip install -e my-sampler\n"
    assert next_words(run("plugins", "check", "uniform")) == ["compare", "--quick", "--methods", "uniform"]
    assert next_words(run("plugins", "check", "kmeans:n_clusters=4"))[-2:] == ["--clusterer", "kmeans:n_clusters=4"]


def test_json_on_stdout_is_all_of_stdout() -> None:
    write_csv(Path(), N)
    options = ["meter", "pairs.csv", "--clusterer", "kmeans:n_clusters=4", "--batch-size", "16"]
    shown = run(*options, "--json", "-")
    run(*options, "--json", "reading.json")
    assert json.loads(shown.stdout) == json.loads(Path("reading.json").read_text())
    assert "Suspect pairs" in shown.stderr
    assert not Path("-").exists()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["a.tar"], "a.tar"),
        (["a-1.tar", "a-3.tar"], None),
        (["a-1/2.tar", "a-2/1.tar"], None),
        (["a-9.tar", "a-10.tar"], None),
        ([f"d2/{number:04d}-x.tar" for number in range(8, 12)], "d2/{0008..0011}-x.tar"),
        (["{a}/0.tar", "{a}/1.tar"], None),
    ],
)
def test_numbered(names: list[str], expected: str | None) -> None:
    assert numbered(names) == expected
