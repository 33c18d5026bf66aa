"""Checkpoints and images that are programs run nothing while open_clip trains."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import open_clip_train.main
import pytest
import torch
from PIL import Image

from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip import TrainOptions, train
from clip_negatives.integrations.open_clip.untrusted import load_checkpoint, no_ghostscript


class Program:
    """What pickle runs when it reads a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_checkpoint_is_read_as_open_clip_reads_it(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "name": "run", "state_dict": {"w": torch.ones(2)}}, tmp_path / "epoch_3.pt")
    ours, theirs = (load(str(tmp_path / "epoch_3.pt"), "cpu") for load in (load_checkpoint, open_clip_train.main.pt_load))
    assert torch.equal(ours.pop("state_dict")["w"], theirs.pop("state_dict")["w"])
    assert ours == theirs == {"epoch": 3, "name": "run"}


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half an archive"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch_3.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"epoch_3\.pt, got .*Resume from a checkpoint"):
        load_checkpoint(str(tmp_path / "epoch_3.pt"))


def test_resuming_from_a_program_runs_nothing(arguments: list[str], tmp_path: Path) -> None:
    """Before torch 2.6, open_clip's own way to read checkpoints would."""
    bad = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": Program(tmp_path / "ran")}, bad)
    options = TrainOptions(sampler="in_batch", weighting="uniform")
    with pytest.raises(ArtifactError, match=r"got .*epoch_1\.pt, .* tensors, numbers and texts alone"):
        train([*arguments, "--epochs", "2", "--name", "run", "--resume", str(bad)], options)
    assert not (tmp_path / "ran").exists()


def test_no_image_is_handed_to_ghostscript() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "EPS")
    with no_ghostscript(), Image.open(io.BytesIO(stream.getvalue())) as image, pytest.raises(OSError, match="Ghostscript"):
        image.convert("RGB")
