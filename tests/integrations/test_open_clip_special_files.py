"""A pipe or a device in place of a file is an error of one sentence; it is not opened, because that would block for ever."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from clip_negatives.cli import main

from .test_open_clip_refusals import BASELINE, refusal

SECONDS = 120  # most time of a test; a process that opened a pipe would wait without end


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "device", "link"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a pipe, a device without end, and a link to the pipe."""
    folder = tmp_path / "special"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "pipe")
    return "/dev/zero" if request.param == "device" else str(folder / request.param)


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("option", ["--train-data", "--val-data", "--resume"])
def test_data_and_checkpoints(arguments: list[str], special: str, option: str, scheme: str, tmp_path: Path) -> None:
    shown = refusal("train", *BASELINE, "--", *arguments, option, scheme + special)
    assert f"{scheme}{special} is not a regular file" in shown
    assert [item.name for item in tmp_path.iterdir()] == ["special"]


def test_weights(arguments: list[str], special: str, tmp_path: Path) -> None:
    assert "--pretrained must be a checkpoint file" in refusal("train", *BASELINE, "--", *arguments, "--pretrained", special)
    model = tmp_path / "model"
    model.mkdir()
    (model / "open_clip_config.json").write_text("{}")
    (model / "open_clip_model.safetensors").symlink_to(special)
    shown = refusal("train", *BASELINE, "--", *arguments, "--model", f"local-dir:{model}")
    assert "open_clip_model.safetensors is not a regular file, so its weights cannot be read" in shown


@pytest.mark.parametrize("encoder", ["timm:resnet18@{}", "open_clip:ViT-B-32/{}", "open_clip:local-dir:{}"])
def test_weights_of_encoders(train_csv: Path, special: str, encoder: str, tmp_path: Path) -> None:
    file = special
    if "local-dir" in encoder:
        file = str(tmp_path / "model")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "open_clip_config.json").symlink_to(special)
    shown = refusal("prepare", str(train_csv), str(tmp_path / "out"), "--image-encoder", encoder.format(file))
    assert "is not a regular file, so its weights cannot be read" in shown
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("name", ["sizes.json", "__len__"])
@pytest.mark.parametrize("option", ["--train-data", "--val-data"])
def test_numbers_of_samples(arguments: list[str], shards: str, special: str, option: str, name: str, tmp_path: Path) -> None:
    for number in (0, 1):
        shutil.copy(shards.replace("{000000..000001}", f"00000{number}"), tmp_path)
    (tmp_path / name).symlink_to(special)
    given = [*arguments, "--dataset-type", "webdataset", "--train-data", shards]
    shown = refusal("train", *BASELINE, "--", *given, option, str(tmp_path / Path(shards).name))
    assert f"{tmp_path / name} must have the number of samples, but it is not a regular file" in shown


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("option", ["--train-data", "--val-data"])
def test_images(arguments: list[str], train_csv: Path, special: str, option: str, workers: str, tmp_path: Path) -> None:
    if not special.endswith("pipe") and (option, workers) != ("--train-data", "0"):
        pytest.skip("one kind is enough")
    lines = train_csv.read_text().splitlines()
    lines[6] = "\t".join([special, *lines[6].split("\t")[1:]])
    changed = tmp_path / "changed.csv"
    changed.write_text("\n".join(lines) + "\n")
    given = [*arguments, option, str(changed), "--workers", workers, "--name", "run"]
    shown = CliRunner().invoke(main, ["train", *BASELINE, "--", *given])
    assert shown.exit_code == 2
    error = shown.stderr.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert special in error
    assert "not a regular file" in error
