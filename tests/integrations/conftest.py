"""A small part of the real catalogue, and open_clip's training on it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.pairs import export

ROWS = 192
BATCH = 32


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a csv and two tars of the first ROWS listings of the catalogue's test split."""
    return export(tmp_path_factory.mktemp("catalogue") / "all", "test", range(ROWS), format="both", shard_size=ROWS // 2)


@pytest.fixture(scope="session")
def train_csv(exported: Path) -> Path:
    """Return a csv of ROWS listings."""
    file = exported / "test.csv"
    assert sum(1 for _ in csv.reader(file.open(), delimiter="\t")) == ROWS + 1
    return file


@pytest.fixture(scope="session")
def shards(exported: Path) -> str:
    """Return two tars that hold the listings of `train_csv`."""
    return str(exported / "test-{000000..000001}.tar")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the cache of clusters out of the user's folder; shared by the session so that it is made once."""
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def every_skipped_sample_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let open_clip 4 log each skipped sample, not only the first and each thousandth."""
    monkeypatch.setattr("open_clip_train.data._WDS_ERROR_LOG_EVERY", 1, raising=False)


@pytest.fixture
def arguments(train_csv: Path, tmp_path: Path) -> list[str]:
    """Return a command line of open_clip_train for one short epoch on the CPU."""
    return [
        *("--train-data", str(train_csv), "--dataset-type", "csv", "--model", "clip-negatives-tiny"),
        *("--batch-size", str(BATCH), "--epochs", "1", "--lr", "1e-3", "--warmup", "2", "--workers", "0"),
        *("--precision", "fp32", "--device", "cpu", "--log-every-n-steps", "1", "--logs", str(tmp_path / "logs")),
    ]


def logged_losses(log: Path) -> list[str]:
    """Return the losses of the steps in a log as open_clip printed them."""
    steps = [line for line in log.read_text().splitlines() if "Train Epoch: " in line]
    return [line.split("Contrastive_loss: ")[1] for line in steps]
