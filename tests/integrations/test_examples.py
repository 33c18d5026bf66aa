"""The examples of the docs, as they stand."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(0)  # the models that the examples build are the same, whichever tests ran before
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.parametrize("name", ["transformers_trainer.py", "ranking_loss.py"])
def test_examples_with_trainers_of_hugging_face_learn(tmp_path, monkeypatch, name):
    trainer = run(name, tmp_path, monkeypatch)["trainer"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) >= 2
    assert losses[-1] < losses[0]


def test_the_example_of_an_own_loop_learns_and_stores_all(tmp_path, monkeypatch):
    example = run("own_loop.py", tmp_path, monkeypatch)
    assert sum(example["losses"][-5:]) < sum(example["losses"][:5])
    factor = example["loss"].anchor_loss.log_factor
    assert factor != 0
    stored = torch.load(example["work"] / "last.pt")
    assert stored["loader"]["epoch"] == 1
    assert factor in stored["loss"].values()


def test_the_example_with_lightning_learns_and_logs(tmp_path, monkeypatch):
    trainer = run("lightning_callback.py", tmp_path, monkeypatch)["trainer"]
    rows = list(csv.DictReader((Path(trainer.log_dir) / "metrics.csv").open()))
    assert len([row for row in rows if row["clip_negatives/image_cluster_size_mean"]]) == 2  # at the start, and refreshed
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert sum(losses[-3:]) < sum(losses[:3])  # one step says little: their losses differ by a tenth


def test_the_example_with_accelerate_learns_and_stores_its_place(tmp_path, monkeypatch):
    example = run("accelerate_loop.py", tmp_path, monkeypatch)
    assert sum(example["losses"][-5:]) < sum(example["losses"][:5])
    state = torch.load(example["work"] / "last" / "custom_checkpoint_0.pkl")
    steps = len(example["losses"]) // 10 * 10
    assert state["epoch"] * len(example["loader"]) + state["batches"] == steps
