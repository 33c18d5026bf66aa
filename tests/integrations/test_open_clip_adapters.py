"""Each generation of open_clip has an adapter; what an adapter needs and does not find is an error before any training."""

from __future__ import annotations

import json
import math
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import open_clip_train.main
import pytest
import torch
from open_clip import factory

from clip_negatives.encoders.encoder import restored
from clip_negatives.encoders.open_clip import MODELS
from clip_negatives.errors import ArtifactError, UnsupportedError
from clip_negatives.integrations.open_clip import TrainOptions, adapter, train
from clip_negatives.integrations.open_clip.checkpoints import read_checkpoint, resumed_file
from clip_negatives.integrations.open_clip.command_line import parsed
from clip_negatives.integrations.open_clip.guest import CPU_DDP, replaced, restored_process

from .conftest import BATCH, ROWS, logged_losses
from .test_open_clip_refusals import BASELINE, refusal

MAJOR = int(version("open_clip_torch").partition(".")[0])
only_3 = pytest.mark.skipif(MAJOR != 3, reason="open_clip 3 is not installed")
only_4 = pytest.mark.skipif(MAJOR != 4, reason="open_clip 4 is not installed")
PLAIN = TrainOptions("in_batch", "uniform")


def test_the_adapter_is_that_of_the_installed_version() -> None:
    assert type(adapter.installed()).__module__ == f"{adapter.__package__}.version{MAJOR}"


@pytest.mark.parametrize("place", sorted(adapter.ADAPTERS.get(f"version{MAJOR}", {})))
def test_a_missing_function_is_an_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = place.rpartition(".")
    monkeypatch.delattr(import_module(module), name)
    with pytest.raises(UnsupportedError, match=rf"^open_clip_torch \S+ has no {name}\(.*\) in its training\. Install .*>=3"):
        adapter.installed()


def test_other_parameters_are_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(open_clip_train.main, "get_data", lambda config: None)
    shown = refusal("train", *BASELINE, "--", *arguments)
    assert "has no get_data(args, preprocess_fns, epoch, tokenizer) in its training. Install open_clip_torch>=3.0,<5" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_cannot_be_imported_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "ADAPTERS", {"version9": {"open_clip_train.absent.get_data": ()}})
    with pytest.raises(UnsupportedError, match=r"has no module open_clip_train.absent \(No module named '.*absent'\)"):
        adapter.installed()


def test_an_open_clip_without_training_is_an_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    assert "has no module open_clip_train. Install open_clip_torch>=3.0,<5." in refusal("train", *BASELINE, "--", *arguments)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        pytest.param(["--horovod"], "--horovod is not supported: the loss gathers samples", marks=only_3),
        pytest.param(["--trace"], "open_clip cannot start with these arguments: ", marks=only_3),
        (["--model", "coca_base"], "--model coca_base (CoCa) is not supported: the weights fit only the contrastive loss"),
        (["--distill-model", "RN50"], "--distill-model is not supported: the weights fit only the contrastive loss of CLIP"),
        (["--siglip"], "--siglip with the weighting uniform is not supported"),
        *(
            pytest.param(theirs, words, marks=only_4)
            for theirs, words in (
                (["--model", "naflexgenlip_b16"], "--model naflexgenlip_b16 is not supported: it has no contrastive loss"),
                (["--use-naflex"], "--use-naflex is not supported: its batches have no sample ids"),
                (["--fsdp"], "--fsdp is not supported: the checks and the re-clustering need all weights on each process"),
                (["--json-text-key", "caption"], "--json-text-key is not supported: --csv-caption-key names the ending"),
                (["--text-key", "txt;caption"], "--text-key is not supported: --csv-caption-key names the ending"),
                (["--dataset-type", "webdataset-audio"], "--dataset-type must be auto, csv"),
                (["--text-pad-multiple", "0"], "open_clip's arguments: --text-pad-multiple must be > 0"),
                (["--report-to", "wandb,trackio"], "pip install"),
            )
        ),
    ],
)
def test_unsupported_arguments(arguments: list[str], theirs: list[str], words: str, tmp_path: Path) -> None:
    assert words in refusal("train", *BASELINE, "--", *arguments, *theirs)
    assert list(tmp_path.iterdir()) == []


@only_4
def test_other_endings_of_images_are_an_error(arguments: list[str]) -> None:
    """On the command line, ``--image-key`` is our own option."""
    with pytest.raises(UnsupportedError, match=r"^--image-key is not supported: images in tars have the endings"):
        train([*arguments, "--image-key", "png", "--name", "run"], PLAIN)


@only_4
@pytest.mark.parametrize(
    ("task", "text", "words"),
    [
        ("CLAPTask", False, "--model clip-negatives-tiny is trained with CLAPTask, and the weights fit only"),
        ("CLIPTask", True, "--model clip-negatives-tiny has captions of variable length"),
    ],
)
def test_tasks_of_other_losses(
    arguments: list[str], task: str, text: bool, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The task shows the loss of a model whose name does not."""
    import open_clip.task

    def create_task(args: Any, model: Any, **_: Any) -> Any:
        args.variable_text = text
        created = open_clip.task.CLIPTask(model)
        created.__class__ = getattr(open_clip.task, task)
        return created

    monkeypatch.setattr(open_clip_train.main, "create_task", create_task)
    assert words in refusal("train", *BASELINE, "--", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--save-most-recent"]])
def test_a_sharded_checkpoint_is_an_error(arguments: list[str], more: list[str]) -> None:
    """Only open_clip 4 writes them."""
    args = parsed([*arguments, "--name", "run", "--resume", "latest", *more])
    folder = Path(args.logs) / "run" / "checkpoints" / ("epoch_latest" if more else "epoch_3")
    folder.mkdir(parents=True)
    (folder / ".metadata").touch()
    if MAJOR == 3 and not more:  # its search finds files only
        assert resumed_file(open_clip_train.main, args) is None
        return
    file = resumed_file(open_clip_train.main, args)
    assert file == folder
    with pytest.raises(ArtifactError, match=r"is a folder of the parts of a sharded model\. .* Use a \.pt file for --resume\."):
        read_checkpoint(file, args)


def losses_of_both(line: list[str]) -> tuple[list[str], list[str]]:
    """Return the losses of `train` and of open_clip alone."""
    open_clip.add_model_config(MODELS)
    logs = Path(line[line.index("--logs") + 1])
    with replaced(CPU_DDP), restored_process():
        open_clip_train.main.main([*line, "--name", "plain"])
    train([*line, "--name", "ours"], PLAIN)
    ours, expected = (logged_losses(logs / name / "out.log") for name in ("ours", "plain"))
    assert len(ours) == ROWS // BATCH
    return ours, expected


@pytest.mark.parametrize(
    "more",
    [
        ["--model", "small-vit", "--grad-checkpointing", "--force-patch-dropout", "0.5", "--lock-image"],
        [
            "--model",
            "small-vit",
            "--lock-text",
            "--lock-text-freeze-layer-norm",
            "--precision",
            "pure_bf16",
            "--skip-scheduler",
        ],
    ],
)
def test_losses_with_more_options_equal_open_clip(arguments: list[str], more: list[str], tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    (tmp_path / "small-vit.json").write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    with restored(factory, "_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
        open_clip.add_model_config(tmp_path / "small-vit.json")
        ours, expected = losses_of_both([*arguments, *more])
    assert ours == expected


@only_4
@pytest.mark.parametrize("strategy", ["model", "task", "step"])
def test_losses_of_compiled_tasks_equal_open_clip(arguments: list[str], strategy: str) -> None:
    line = [*arguments, "--torchcompile", "--torchcompile-backend", "aot_eager", "--torchcompile-strategy", strategy]
    ours, expected = losses_of_both(line)
    assert ours == expected


@only_4
@pytest.mark.parametrize("strategy", ["task", "step"])
def test_held_temperature_and_teacher_of_compiled_tasks(arguments: list[str], strategy: str) -> None:
    line = [*arguments, "--torchcompile", "--torchcompile-backend", "aot_eager", "--torchcompile-strategy", strategy]
    train([*line, "--name", "run"], TrainOptions(weighting="distilled", ema=0.5, temperature=0.1))
    run = Path(arguments[arguments.index("--logs") + 1]) / "run"
    assert (run / "out.log").read_text().count("Logit Scale: 10.000") == ROWS // BATCH
    weights = torch.load(run / "checkpoints" / "epoch_1.pt", weights_only=True)["state_dict"]
    assert weights["logit_scale"].item() == pytest.approx(math.log(10), abs=1e-6)


@only_4
def test_figures_are_logged_at_the_steps_of_open_clip(arguments: list[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = ["--report-to", "tensorboard", "--log-every-n-steps", "4", "--log-metric-every-n-steps", "3", "--name", "run"]
    train([*arguments, *logged], TrainOptions("in_batch", "learned_temperature"))
    events = EventAccumulator(str(Path(arguments[arguments.index("--logs") + 1]) / "run" / "tensorboard")).Reload()
    steps = [[event.step for event in events.Scalars(name)] for name in ("train/loss", "clip_negatives/image_temperature")]
    assert steps == [[0, 3, 4, 5]] * 2
