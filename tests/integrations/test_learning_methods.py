"""Methods that learn beside the model: each training loop trains them, and a stopped training goes on exactly."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from clip_negatives.errors import ArtifactError, DataError, InputError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.integrations.open_clip.teacher import MovingAverage
from clip_negatives.step import BatchSamples
from tests import ranks
from tests.integrations import test_lightning as lightning
from tests.integrations import test_transformers as transformers
from tests.integrations.clustered import write_folder
from tests.integrations.test_open_clip_harmless import ours, trained

from .conftest import BATCH, ROWS, logged_losses

STEPS = ROWS // BATCH
METHODS: dict[str, dict[str, Any]] = {
    "parameters": {"weighting": "learned_temperature"},
    "queue": {"weighting": "xbm:size=100,start=0"},
    "memory": {"sampler": "mined:run=2,share=0.5"},
    "moving average": {"weighting": "distilled", "ema": 0.5},
}


def run(arguments: list[str]) -> Path:
    return Path(arguments[arguments.index("--logs") + 1]) / "run"


def losses(arguments: list[str]) -> list[str]:
    return logged_losses(run(arguments) / "out.log")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_launcher_goes_on_as_if_never_stopped(arguments: list[str], method: dict[str, Any]) -> None:
    seen: list[BatchSamples] = []
    options = TrainOptions(**method, on_batch=seen.append)
    line = [*arguments, "--epochs", "3", "--name", "run"]
    train(line, options)
    first, batches = losses(arguments), [samples.ids.tolist() for samples in seen]
    stored = torch.load(run(arguments) / "checkpoints" / "epoch_3.pt", weights_only=True)
    (run(arguments) / "checkpoints" / "epoch_3.pt").unlink()
    seen.clear()
    train([*line, "--resume", "latest"], options)
    assert [samples.ids.tolist() for samples in seen] == batches[2 * STEPS :]
    assert losses(arguments)[len(first) :] == first[2 * STEPS :]
    again = torch.load(run(arguments) / "checkpoints" / "epoch_3.pt", weights_only=True)
    torch.testing.assert_close(again["state_dict"], stored["state_dict"], rtol=0, atol=0)
    assert len(stored["optimizer"]["param_groups"]) == 2  # open_clip's own groups: other tools can load the checkpoint


def test_another_teacher_is_another_method(arguments: list[str]) -> None:
    train([*arguments, "--name", "run"], TrainOptions(weighting="distilled", ema=0.9))
    line = [*arguments, "--epochs", "2", "--name", "run", "--resume", "latest"]
    with pytest.raises(InputError, match=r"--ema was 0\.9, is 0\.5"):
        train(line, TrainOptions(weighting="distilled", ema=0.5))
    checkpoint = run(arguments) / "checkpoints" / "epoch_1.pt"
    with pytest.raises(InputError, match="--teacher"):
        train(line, TrainOptions(weighting="distilled", teacher=str(checkpoint)))


def test_a_teacher_from_a_checkpoint(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is the model itself gives its own similarities as targets."""
    train([*arguments, "--name", "teacher"], TrainOptions(sampler="in_batch", weighting="uniform"))
    checkpoint = run(arguments).parent / "teacher" / "checkpoints" / "epoch_1.pt"
    taught: list[BatchSamples] = []
    options = TrainOptions(weighting="distilled", teacher=str(checkpoint), on_batch=taught.append)
    train([*arguments, "--accum-freq", "2", "--name", "run"], options)
    assert len(losses(arguments)) == STEPS // 2
    features = [samples.teacher for samples in taught]
    assert all(part is not None and part.image.shape == (BATCH, 128) for part in features)
    torch.testing.assert_close(features[0].text.norm(dim=1), torch.ones(BATCH))


def test_a_teacher_has_the_options_of_the_model(arguments: list[str]) -> None:
    """With the same weights, another activation would give other features."""
    line = [*arguments, "--force-quick-gelu"]
    train([*line, "--lr", "0", "--name", "teacher"], TrainOptions(sampler="in_batch", weighting="uniform"))
    checkpoint = run(arguments).parent / "teacher" / "checkpoints" / "epoch_1.pt"
    taught: list[BatchSamples] = []
    for options in ({"ema": 0.0}, {"teacher": str(checkpoint)}):
        settings = TrainOptions(weighting="distilled", sampler="in_batch", on_batch=taught.append, **options)
        train([*line, "--lr", "0", "--name", f"run-{len(taught)}"], settings)
    assert len(taught) == 2 * STEPS
    torch.testing.assert_close(taught[STEPS].teacher.text, taught[0].teacher.text)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weighting": "distilled"}, InputError, "needs a teacher, and there is none. Use --ema"),
        ({"ema": 0.9}, InputError, "weighting .* uses no teacher. Omit --ema"),
        ({"ema": 1.0, "weighting": "distilled"}, InputError, "ema= must be at least 0 and below 1"),
        ({"ema": 0.9, "teacher": "a", "weighting": "distilled"}, InputError, "both name the teacher"),
        ({"teacher": "nowhere.pt", "weighting": "distilled"}, DataError, "checkpoint nowhere.pt does not exist"),
    ],
)
def test_refused(arguments: list[str], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train([*arguments, "--name", "run"], TrainOptions(**options))
    assert not run(arguments).exists()


def test_a_checkpoint_of_another_model_is_no_teacher(arguments: list[str], tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ArtifactError, match="no weights of the model clip-negatives-tiny"):
        train([*arguments, "--name", "run"], TrainOptions(weighting="distilled", teacher=str(tmp_path / "other.pt")))


IN_TRAINERS = {name: method for name, method in METHODS.items() if "ema" not in method}


class WithSchedule(lightning.Towers):
    """Towers with an optimizer with a state, and a schedule."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)]


class WithWarmUp(lightning.Towers):
    """Towers with a schedule of two parts, one of them with a callable that has a state."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        parts = [torch.optim.lr_scheduler.LambdaLR(optimizer, partial(pow, factor)) for factor in (0.5, 0.9)]
        return [optimizer], [torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [1])]


@pytest.mark.filterwarnings("ignore")  # of Lightning, and of the scheduler's own steps
def test_lightning_goes_on_with_a_schedule_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "clusters")
    monkeypatch.setattr(lightning, "Towers", WithWarmUp)
    how = {"callback": METHODS["parameters"], "max_epochs": 3}
    whole, negatives, _ = lightning.fit(tmp_path, **how, **lightning.keep(tmp_path, every_n_train_steps=9))
    resumed, again, _ = lightning.fit(tmp_path, **how, resume=lightning.kept(tmp_path, 9))
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    states = again.loss.anchor_loss.state_dict(), negatives.loss.anchor_loss.state_dict()
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("method", IN_TRAINERS.values(), ids=IN_TRAINERS)
@pytest.mark.parametrize("step", [4, 9])
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and cores
def test_lightning_goes_on_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], step: int
) -> None:
    """In an epoch and in the next one, after a checkpoint at this step."""
    write_folder(tmp_path / "clusters")
    monkeypatch.setattr(lightning, "Towers", WithSchedule)
    how = {"callback": method, "max_epochs": 3}
    whole, negatives, _ = lightning.fit(tmp_path, **how, **lightning.keep(tmp_path, every_n_train_steps=step))
    resumed, again, _ = lightning.fit(tmp_path, **how, resume=lightning.kept(tmp_path, step))
    assert resumed.seen == whole.seen[step:]
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    if negatives.loss.anchor_loss is not None:
        states = again.loss.anchor_loss.state_dict(), negatives.loss.anchor_loss.state_dict()
        torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("method", IN_TRAINERS.values(), ids=IN_TRAINERS)
def test_the_trainer_goes_on_as_if_never_stopped(tmp_path: Path, method: dict[str, Any]) -> None:
    write_folder(tmp_path / "clusters")
    steps = transformers.STEPS + 2
    how = {**method, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": steps}
    whole = transformers.trainer(tmp_path, **how)
    whole.train()
    resumed = transformers.trainer(tmp_path, transformers.tiny_clip(seed=9), **how)
    resumed.train(str(tmp_path / "run" / f"checkpoint-{steps}"))
    assert resumed.seen == whole.seen[steps:]
    assert transformers.losses(resumed)[-1] == pytest.approx(transformers.losses(whole)[-1], rel=1e-4)
    if whole.negatives.anchor_loss is not None:
        states = resumed.negatives.anchor_loss.state_dict(), whole.negatives.anchor_loss.state_dict()
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


def test_the_parameters_move_with_the_model_in_each_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "clusters")
    monkeypatch.setattr(lightning, "Towers", WithSchedule)
    _, negatives, _ = lightning.fit(tmp_path, callback=METHODS["parameters"])
    trainer = transformers.trainer(tmp_path, **METHODS["parameters"])
    first = [parameter.clone() for parameter in trainer.negatives.parameters()]
    trainer.train()
    for losses in (negatives.loss, trainer.negatives):
        assert all(not torch.equal(old, new) for old, new in zip(first, losses.parameters(), strict=True))


def test_two_processes_go_on_as_if_never_stopped(arguments: list[str]) -> None:
    method = ["--sampler", "mined:run=2,share=0.5", "--weighting", "learned_temperature"]
    whole_image = ["--aug-cfg", "scale=(1.0, 1.0)", "ratio=(1.0, 1.0)"]  # random crops would differ after a resume
    of_two = ["--local-loss", "--gather-with-grad", "--dist-backend", "gloo"]
    line = [*arguments, *of_two, *whole_image, "--epochs", "2"]
    whole = trained(ours, method, line, "run", processes=2)
    assert len(whole) == STEPS
    (run(arguments) / "checkpoints" / "epoch_2.pt").unlink()
    resumed = trained(ours, method, [*line, "--resume", "latest"], "run", processes=2)
    assert resumed[len(whole) :] == whole[STEPS // 2 :]


def _average(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, model = dist.get_rank(), torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    teacher = MovingAverage(model, Namespace(world_size=2), 0.5, optimizer)
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(rank))).sum().backward()
    optimizer.step()
    torch.save((teacher.model.state_dict(), model.state_dict()), folder / f"{rank}.pt")


def test_the_moving_average_has_the_same_statistics_on_all_processes(tmp_path: Path) -> None:
    """Checkpoints store those of the first process, so a resume gives them to all."""
    ranks.run(2, _average, tmp_path, log=tmp_path / "log")
    (first, trained), (second, other) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], trained[name])
        assert torch.equal(second[name], first[name])
    assert not torch.equal(other["running_mean"], trained["running_mean"])
