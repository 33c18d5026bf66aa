"""Our figures in the loggers that open_clip opens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import open_clip_train.main
import open_clip_train.train
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clip_negatives import ClustersFolder, Columns, read_clusters
from clip_negatives.dataset import open_pairs
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.pipelines.prepare import prepare
from clip_negatives.step import BatchSamples
from clip_negatives.training.figures import batch_figures, cluster_figures
from clip_negatives_plugins.weighted_infonce.weighting import WeightedInfoNCE

from .conftest import BATCH, ROWS

STEPS = ROWS // BATCH
BATCH_FIGURES = [f"clip_negatives/{name}" for name in ("removed_share", "mean_weight", "false_negatives_per_anchor")]


class Wandb(SimpleNamespace):
    """Stand for the module, and note what is logged."""

    def __init__(self) -> None:
        super().__init__(logged=[], __name__="wandb")

    def init(self, **named: object) -> None: ...
    def save(self, file: object) -> None: ...
    def finish(self) -> None: ...
    def log(self, figures: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, dict(figures)))


@pytest.fixture
def folder(train_csv: Path, tmp_path: Path) -> ClustersFolder:
    return prepare(open_pairs(train_csv, Columns(group="subgroup")), tmp_path / "clusters", progress=False)


def _scalars(arguments: list[str], name: str) -> EventAccumulator:
    return EventAccumulator(str(Path(arguments[arguments.index("--logs") + 1]) / name / "tensorboard")).Reload()


def test_tensorboard_and_wandb_have_them(arguments: list[str], folder: ClustersFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    for module in (open_clip_train.main, open_clip_train.train):
        monkeypatch.setattr(module, "wandb", wandb, raising=False)
    more = ["--report-to", "tensorboard,wandb", "--epochs", "2", "--log-every-n-steps", "4", "--name", "run"]
    seen: list[BatchSamples] = []
    train([*arguments, *more], TrainOptions(clusters=folder.path, refresh_every=1, on_batch=seen.append))
    events = _scalars(arguments, "run")
    logged = [0, 4, STEPS - 1, STEPS, STEPS + 4, 2 * STEPS - 1]
    assert [event.step for event in events.Scalars("train/loss")] == logged
    first = batch_figures(seen[0], folder.clusters, WeightedInfoNCE()(folder.clusters))
    assert set(first) == set(BATCH_FIGURES)
    for name, value in first.items():
        assert [event.step for event in events.Scalars(name)] == logged
        assert events.Scalars(name)[0].value == pytest.approx(value)
        assert next((step, row[name]) for step, row in wandb.logged if name in row) == (0, pytest.approx(value))
    refreshed = read_clusters(Path(arguments[arguments.index("--logs") + 1]) / "run" / "clip_negatives" / "clusters-epoch-1")
    for step, clusters in ((0, folder.clusters), (STEPS, refreshed.clusters)):
        for name, value in cluster_figures(clusters).items():
            assert [event.value for event in events.Scalars(name) if event.step == step] == [pytest.approx(value)]
    steps = [step for step, _ in wandb.logged]
    assert steps == sorted(steps)  # wandb drops what goes back


def test_accumulated_batches_are_one_step(arguments: list[str], folder: ClustersFolder) -> None:
    seen: list[BatchSamples] = []
    more = ["--report-to", "tensorboard", "--accum-freq", "2", "--name", "run"]
    train([*arguments, *more], TrainOptions(clusters=folder.path, on_batch=seen.append, sampler="in_batch"))
    events = _scalars(arguments, "run")
    for name in ("train/loss", "clip_negatives/mean_weight"):
        assert [event.step for event in events.Scalars(name)] == list(range(STEPS // 2))
    expected = batch_figures(BatchSamples.concatenate(seen[-2:]), folder.clusters, WeightedInfoNCE()(folder.clusters))
    assert events.Scalars("clip_negatives/mean_weight")[-1].value == pytest.approx(expected["clip_negatives/mean_weight"])


def test_nothing_is_counted_where_nothing_is_logged(
    arguments: list[str], folder: ClustersFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_negatives.integrations.open_clip.loggers.batch_figures", lambda *_: pytest.fail("counted"))
    train([*arguments, "--name", "run"], TrainOptions(clusters=folder.path, sampler="in_batch"))
    # Without clusters nothing is known.
    how = TrainOptions(sampler="in_batch", weighting="uniform")
    train([*arguments, "--report-to", "tensorboard", "--name", "plain"], how)
    assert not [name for name in _scalars(arguments, "plain").Tags()["scalars"] if name.startswith("clip_negatives")]


def test_figures_of_a_weighting_need_no_clusters(arguments: list[str]) -> None:
    options = TrainOptions(sampler="in_batch", weighting="learned_temperature")
    train([*arguments, "--report-to", "tensorboard", "--name", "run"], options)
    events = _scalars(arguments, "run")
    assert [event.step for event in events.Scalars("clip_negatives/image_temperature")] == list(range(STEPS))
