"""A finished run of a comparison is used again only if everything that it depends on is unchanged."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_negatives import catalogue
from clip_negatives.compare import compare, reuse
from clip_negatives.compare.queries import NAME, Queries, write_queries
from clip_negatives.compare.run import OWN_FILES, RESULT, Job, settle
from clip_negatives.dataset import open_pairs
from clip_negatives.errors import DataError, InputError
from clip_negatives.host import registry
from clip_negatives.integrations.open_clip.tiny import tiny_model
from clip_negatives.storage.ownership import claim_work
from clip_negatives.storage.paths import WORK
from tests.pairs import write_csv

from .test_kept import RUN

PLUGIN = """
import clip_negatives

class Weighting:
    def __init__(self, beta: float = 1.0):
        self.beta = beta
    def __call__(self, clusters):
        return clip_negatives.LossTerms()

@clip_negatives.hookimpl
def clip_negatives_register_loss_weightings():
    return {"made": Weighting}
"""
ANSWERS = Queries(*(torch.tensor(values) for values in ([1, 2, 3], [2, 1, 1], [0, 2, 1], [0, 1, 2])))
ALL = ["in_batch", "in_batch+made", "random_reduction"]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a plugin, and return its folder."""
    folder = tmp_path / "site"
    (folder / "made-1.0.dist-info").mkdir(parents=True)
    (folder / "made_plugin.py").write_text(PLUGIN)
    (folder / "made-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: made\nVersion: 1.0\n")
    (folder / "made-1.0.dist-info" / "entry_points.txt").write_text("[clip_negatives]\nmade = made_plugin\n")
    monkeypatch.syspath_prepend(folder)
    registry.default_registry.cache_clear()
    yield folder
    monkeypatch.undo()
    sys.modules.pop("made_plugin", None)
    registry.default_registry.cache_clear()


class Comparisons:
    """Comparisons in one folder, whose runs are not trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.test = write_csv(folder / "train"), write_csv(folder / "test", 40)
        self.weights = folder / "weights.pt"
        self.write_weights(0)
        self.states: list[str] = []

    def write_weights(self, seed: int) -> None:
        model, *_ = tiny_model(seed=seed)
        torch.save({"state_dict": model.state_dict()}, self.weights)

    def made(self, *more: str, methods: str = "in_batch+made", during: Callable[[], object] = lambda: None) -> list[str]:
        """Return the methods whose runs were made, not taken from the comparison before; `during` is called in each run."""
        jobs: list[Job] = []

        def run(job: Job) -> dict[str, Any]:
            jobs.append(job)
            during()
            job.new.mkdir(parents=True)
            write_queries(ANSWERS, job.new)
            return {**RUN, "method": job.method_fields}

        self.states = []
        line = ["--train-data", str(self.train), "--batch-size", "32", "--device", "cpu", "--pretrained", str(self.weights)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reuse, "run", run)
            options: dict[str, Any] = {"methods": methods, "seeds": 1, "test_data": str(self.test), "temperatures": ()}
            on_run = lambda job, number, total, state: self.states.append(state)  # noqa: E731
            compare(self.folder / "out", arguments=[*line, *more], on_run=on_run, **options)
        return [job.name for job in jobs]


@pytest.fixture
def comparisons(tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Comparisons:
    """Return comparisons of which one is finished."""
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))
    finished = Comparisons(tmp_path)
    assert finished.made() == ALL
    assert finished.made() == []
    return finished


def test_test_data(comparisons: Comparisons) -> None:
    lines = comparisons.test.read_text().splitlines(keepends=True)
    comparisons.test.write_text("".join(lines[:21]))
    assert comparisons.made() == ALL
    assert comparisons.made() == []
    image = Path(lines[1].split("\t")[0])
    shutil.copyfile(lines[2].split("\t")[0], image)
    os.utime(image, (1, 1))
    assert comparisons.made() == ALL


def test_training_data(comparisons: Comparisons) -> None:
    lines = comparisons.train.read_text().splitlines(keepends=True)
    comparisons.train.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert comparisons.made() == ALL


def test_code_of_a_plugin(comparisons: Comparisons, plugin: Path) -> None:
    (plugin / "made_plugin.py").write_text(PLUGIN.replace("self.beta = beta", "self.beta = 2 * beta"))
    assert comparisons.made() == ["in_batch+made"]
    assert comparisons.made() == []


def test_version_of_a_plugin(comparisons: Comparisons, plugin: Path) -> None:
    metadata = plugin / "made-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    registry.default_registry.cache_clear()
    assert comparisons.made() == ["in_batch+made"]


def test_weights(comparisons: Comparisons) -> None:
    comparisons.weights = comparisons.weights.rename(comparisons.weights.with_name("moved.pt"))
    assert comparisons.made() == []
    comparisons.write_weights(1)
    assert comparisons.made() == ALL


@pytest.mark.parametrize("more", [["--epochs", "3"], ["--lr", "1"], ["--force-quick-gelu"], ["--workers", "2"]])
def test_arguments(comparisons: Comparisons, more: list[str]) -> None:
    assert comparisons.made(*more) == ALL
    assert comparisons.made() == ALL


def test_names_and_logs_of_open_clip(comparisons: Comparisons) -> None:
    assert comparisons.made("--report-to", "tensorboard", "--save-frequency", "1") == []


def test_options_of_a_method_that_are_its_defaults(comparisons: Comparisons) -> None:
    """They have a folder of their own, because a folder has the name of the method as it is written."""
    assert comparisons.made(methods="in_batch+made:beta=1.0") == ["in_batch+made:beta=1.0"]


def test_old_and_damaged_results(comparisons: Comparisons) -> None:
    first, second, _ = sorted(comparisons.folder.glob("out/runs/*/result.json"))
    first.write_text('{"identity": "0123", "run": {}}')
    second.write_text("{")
    assert len(comparisons.made()) == 2


def test_why_a_run_is_made_again_is_said(comparisons: Comparisons, plugin: Path) -> None:
    assert comparisons.states == ["reused"] * 3
    (plugin / "made_plugin.py").write_text(PLUGIN.replace("self.beta = beta", "self.beta = 2 * beta"))
    assert comparisons.made() == ["in_batch+made"]
    assert comparisons.states == ["reused", "again, because the source of the loss weighting made differs", "reused"]
    comparisons.made("--lr", "1")
    assert comparisons.states == ["again, because --lr was 0.004, is 1.0"] * 3
    next(comparisons.folder.glob("out/runs/in_batch-?*/result.json")).write_text("{")
    comparisons.made("--lr", "1", methods="in_batch+made,in_batch+made:beta=2")
    assert sorted(comparisons.states) == ["again, because its result is damaged", "new", "reused", "reused"]


def test_a_run_without_its_ranks_is_made_again(comparisons: Comparisons) -> None:
    next(comparisons.folder.glob(f"out/runs/in_batch-?*/{NAME}")).write_bytes(b"damaged")
    assert len(comparisons.made()) == 1
    assert "again, because its ranks are missing or damaged" in comparisons.states
    assert comparisons.made() == []


def test_older_result_stays_until_the_new_run_is_complete(comparisons: Comparisons) -> None:
    def fail() -> None:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        comparisons.made("--lr", "1", during=fail)
    assert comparisons.made() == []


@pytest.mark.parametrize("name", ["made_plugin.py", "weights"])
def test_plugin_or_weights_that_change_while_a_comparison_runs(name: str, comparisons: Comparisons, plugin: Path) -> None:
    def change() -> None:
        if name == "weights":
            comparisons.write_weights(1)
        else:
            (plugin / name).write_text(f"{PLUGIN}\n")

    with pytest.raises(InputError, match="While the comparison ran, something changed: "):
        comparisons.made("--lr", "1", during=change)
    assert len(comparisons.made("--lr", "1")) == 3


def test_unreadable_test_image_is_found_before_the_first_run(comparisons: Comparisons) -> None:
    image = Path(comparisons.test.read_text().splitlines()[-1].split("\t")[0])
    image.write_bytes(b"damaged")
    ran: list[None] = []
    with pytest.raises(DataError, match="cannot be decoded"):
        comparisons.made(during=lambda: ran.append(None))
    assert not ran


@pytest.mark.parametrize("moved", range(len(OWN_FILES) + 1))
def test_complete_new_run_replaces_the_older_one_after_any_kill(moved: int, tmp_path: Path) -> None:
    claim_work(tmp_path / "run")
    new = tmp_path / "run" / "new"
    new.mkdir()
    for place, name in enumerate(OWN_FILES):
        (tmp_path / "run" / name).write_text("new" if place < moved else "old")
        if place >= moved:
            (new / name).write_text("new")
    settle(tmp_path / "run")
    assert {(tmp_path / "run" / name).read_text() for name in OWN_FILES} == {"new"}
    assert not new.exists()


def test_incomplete_new_run_is_removed(tmp_path: Path) -> None:
    claim_work(tmp_path / "run")
    (tmp_path / "run" / "new").mkdir()
    (tmp_path / "run" / "new" / OWN_FILES[0]).write_text("new")
    (tmp_path / "run" / RESULT).write_text("old")
    settle(tmp_path / "run")
    assert {item.name for item in (tmp_path / "run").iterdir()} == {WORK, RESULT}


def test_a_repeated_export_of_the_catalogue_is_the_same_data(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_pairs(catalogue.export(tmp_path / "data", split="unseen", format="csv") / "unseen.csv").fingerprint()

    assert fingerprint() == fingerprint()
