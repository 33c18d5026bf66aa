"""open_clip's start is rehearsed: arguments and checkpoints that fail are an error before anything is written."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import open_clip
import open_clip_train.main
import pytest
import torch
from click.testing import CliRunner

from clip_negatives.cli import main
from clip_negatives.integrations.open_clip.adapter import installed
from clip_negatives.integrations.open_clip.command_line import parsed
from clip_negatives.integrations.open_clip.rehearsal import rehearse
from clip_negatives.integrations.open_clip.tiny import tiny_model

from .test_open_clip_refusals import BASELINE, refusal

WEIGHTS = tiny_model(seed=0)[0].state_dict()
OTHER = {"a": torch.ones(2)}


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ([1, 2], "holds no weights"),
        (torch.ones(2), "holds no weights"),
        ({}, "holds no weights"),
        ({"state_dict": WEIGHTS}, "has no epoch to resume at. Pass it to --pretrained"),
        ({"epoch": 1}, "has no state_dict"),
        ({"epoch": 1, "state_dict": [], "optimizer": {}}, "has no state_dict"),
        ({"epoch": 1, "state_dict": WEIGHTS}, "has no optimizer"),
        ({"epoch": "one", "state_dict": WEIGHTS, "optimizer": {}}, "has the epoch 'one'"),
        ({"epoch": -1, "state_dict": WEIGHTS, "optimizer": {}}, "has the epoch -1"),
        ({"epoch": 1, "state_dict": WEIGHTS, "optimizer": {}}, "does not fit the model clip-negatives-tiny and its optimizer"),
        ({"epoch": 1, "state_dict": {}, "optimizer": {}}, "does not fit the model"),
        ({"epoch": 1, "state_dict": OTHER, "optimizer": {}}, "does not fit the model"),
        (OTHER, "does not fit the model clip-negatives-tiny and its optimizer: Error(s) in loading state_dict"),
    ],
)
def test_resumed_checkpoints_of_another_shape(arguments: list[str], stored: Any, words: str, tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "stored.pt")
    shown = refusal("train", *BASELINE, "--", *arguments, "--epochs", "3", "--resume", str(tmp_path / "stored.pt"))
    assert f"The checkpoint {tmp_path / 'stored.pt'} {words}" in shown
    assert [item.name for item in tmp_path.iterdir()] == ["stored.pt"]


class Code:
    """An object whose pickle runs code."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged or does not hold a model"),
        (b"no checkpoint", "is damaged or does not hold a model"),
        (pickle.dumps(Code()), "is damaged or does not hold a model"),
        (pickle.dumps({"a": 1}), "is damaged or does not hold a model"),
        (b"PK\3\4" + bytes(1000), "PytorchStreamReader failed"),
        ([1, 2], "is damaged or does not hold a model"),
        ({}, "is damaged or does not hold a model"),
        (OTHER, "Error(s) in loading state_dict"),
    ],
)
def test_pretrained_weights_of_another_shape(
    arguments: list[str], content: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    shown = refusal("train", *BASELINE, "--", *arguments, "--pretrained", str(file))
    assert f"The weights {file} cannot be loaded into the model clip-negatives-tiny: " in shown
    assert words in shown
    assert "weights_only" not in shown
    assert [item.name for item in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.keeps_global_rng
def test_rehearsal_leaves_nothing_behind(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(WEIGHTS, tmp_path / "weights.pt")
    args = parsed([*arguments, "--pretrained", str(tmp_path / "weights.pt"), "--seed", "7"])
    open_clip.add_model_config(Path(open_clip.__file__).parent / "model_configs")
    before, functions = dict(vars(args)), dict(vars(open_clip_train.main))
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    rehearse(installed(), args)
    assert vars(args) == before
    assert vars(open_clip_train.main) == functions
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)
    assert capsys.readouterr() == ("", "")
    assert [item.name for item in tmp_path.iterdir()] == ["weights.pt"]


def test_model_that_needs_memory(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that reads a value of a tensor while it is created."""
    create, devices = open_clip_train.main.create_model_and_transforms, []

    def reading(*given: Any, **named: Any) -> Any:
        devices.append(torch.ones(1).device.type)
        assert torch.ones(1).item() == 1
        return create(*given, **named)

    monkeypatch.setattr(open_clip_train.main, "create_model_and_transforms", reading)
    rehearse(installed(), parsed(arguments))
    assert devices == ["meta", "cpu"]


def test_latest_checkpoint_in_a_folder_whose_name_is_a_pattern(arguments: list[str], tmp_path: Path) -> None:
    given = ["train", *BASELINE, "--", *arguments, "--logs", str(tmp_path / "logs [1]*?"), "--name", "run**"]
    assert CliRunner().invoke(main, given).exit_code == 0
    shown = CliRunner().invoke(main, [*given, "--epochs", "2", "--resume", "latest"])
    assert shown.exit_code == 0, shown.stderr
    run = tmp_path / "logs [1]*?" / "run**"
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["epoch_1.pt", "epoch_2.pt"]
    assert (run / "out.log").read_text().count("Start epoch 0") == 1
