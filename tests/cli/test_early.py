"""A wrong path or option is an error before torch and other slow packages are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {"torch", "open_clip", "faiss", "matplotlib", "pandas", "sklearn", "scipy", "webdataset", "timm", "transformers"}
CODE = """
import json, sys
from clip_negatives.cli import main
try:
    main()
finally:
    json.dump(sorted({name.partition(".")[0] for name in sys.modules}), open("modules.json", "w"))
"""
CASES = [
    (["prepare", "absent.csv", "out"], "The csv file absent.csv does not exist"),
    (["prepare", "absent.txt", "out"], "name the format with --dataset-type"),
    (["prepare", "file.tar::absent-{0..3}.tar", "out"], "The tar absent-0.tar does not exist"),
    (["prepare", "absent", "out", "--dataset-type", "csv"], "The csv file absent does not exist"),
    (["prepare", "file.csv", "foreign"], "it has files, but no manifest.json"),
    (["prepare", "file.csv", "file.csv/out"], "file.csv is not a writable folder"),
    (["prepare", "file.csv", "file.csv"], "file.csv is a file, not a folder"),
    (["prepare", "file.csv", "out", "--bad"], "No such option"),
    (["labels", "absent", "out"], "absent is not a clusters folder"),
    (["labels", "clusters", "foreign"], "it has files, but no labels.json"),
    (["labels", "out", "--from", "absent.parquet", "--centroids", "a.npy,b.npy"], "absent.parquet does not exist"),
    (["labels", "out", "--from", "file.csv", "--centroids", "a.npy"], "--centroids must be IMAGES.npy,TEXTS.npy"),
    (["labels", "out", "--from", "file.csv", "--centroids", "a.npy,b.npy"], "The npy file a.npy does not exist"),
    (
        ["labels", "out", "--from", "file.csv", "--centroids", "file.csv,file.csv", "--data", "absent.tar"],
        "absent.tar does not exist",
    ),
    (["labels", "foreign", "--from", "file.csv", "--centroids", "file.csv,file.csv"], "it has files, but no labels.json"),
    (["reshard", "absent.tar", "clusters", "out"], "The tar absent.tar does not exist"),
    (["reshard", "file.tar", "absent", "out"], "absent is not a clusters folder"),
    (["reshard", "file.tar", "clusters", "foreign"], "was not written by this command"),
    (["generate", "absent"], "absent is not a clusters folder"),
    (["generate", "clusters", "-o", "file.csv/pairs.parquet"], "file.csv is not a writable folder"),
    (["generate", "clusters", "-o", "foreign"], "'foreign' is a directory"),
    (["generate", "clusters", "-o", "file.csv"], "file.csv exists, and it is not a file of clip-negatives"),
    (["meter", "absent"], "absent is not a clusters folder"),
    (["meter", "labels"], "labels is a labels folder, not a clusters folder"),
    (["meter", "clusters", "--json", "file.csv/x.json"], "file.csv is not a writable folder"),
    (["meter", "clusters", "--json", "file.csv"], "file.csv exists, and it is not a file of clip-negatives"),
    (["inspect", "absent"], "absent is not a clusters folder"),
    (["inspect", "clusters", "--data", "absent.csv"], "The csv file absent.csv does not exist"),
    (["inspect", "clusters", "-o", "foreign"], "it has files, but no report.json"),
    (["train", "--", "--train-data", "absent.csv"], "The csv file absent.csv does not exist"),
    (["train", "--", "--train-data", "absent.tar"], "The tar absent.tar does not exist"),
    (["train", "--", "--train-data", "file.csv", "--val-data", "absent.csv"], "The csv file absent.csv does not exist"),
    (["train", "--", "--train-data", "file.csv", "--resume", "absent.pt"], "the file absent.pt does not exist"),
    (["train", "--", "--train-data", "file.csv", "--logs", "file.csv"], "--logs file.csv cannot be written"),
    (
        ["train", "--", "--train-data", "file.csv", "--logs", ".", "--name", "run"],
        "Remove run, which has no checkpoint",
    ),
    (["train", "--", "--train-data", "file.csv", "--bad"], "unrecognized arguments: --bad"),
    (["train", "--clusters", "absent", "--", "--train-data", "file.csv"], "absent is not a clusters folder"),
    (["compare", "--test-data", "absent.csv", "--", "--train-data", "file.csv"], "The csv file absent.csv does not exist"),
    (["compare", "--test-data", "file.csv", "--", "--train-data", "absent.csv"], "The csv file absent.csv does not exist"),
    (["compare", "--test-data", "file.csv"], "--test-data needs training data"),
    (["compare", "--output", "file.csv"], "file.csv is not a writable folder"),
    (["compare", "--json", "file.csv/x.json"], "file.csv is not a writable folder"),
    (["compare", "--json", "file.csv"], "file.csv exists, and it is not a file of clip-negatives"),
    (["compare", "--", "--bad"], "unrecognized arguments: --bad"),
    (["compare", "--", "--name", "x"], "compare sets --name itself"),
    (["catalogue", "export", "out", "--split", "tset"], "Expected a split"),
    (["catalogue", "export", "foreign", "--format", "webdataset"], "it has files, but no catalogue.json"),
    (["catalogue", "export", "file.csv/out"], "cannot be written"),
    (["plugins", "new", "In Batch"], "such as my-sampler"),
    (["plugins", "check"], "Missing argument"),
]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("file.csv", "file.tar", "clusters/manifest.json", "labels/labels.json", "foreign/notes.txt", "run/out.log"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")


def run(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True)
    return done, set(json.loads(Path("modules.json").read_text()))


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_path_or_option_is_an_error_before_slow_imports(arguments: list[str], words: str) -> None:
    before = sorted(Path().rglob("*"))
    done, modules = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert modules & SLOW == set()
    assert sorted(Path().rglob("*")) == sorted([*before, Path("modules.json")])


def test_help_of_open_clip_needs_no_torch() -> None:
    done, modules = run("train", "--", "--help")
    assert done.returncode == 0
    assert "--train-data" in done.stdout
    assert modules & SLOW == set()
