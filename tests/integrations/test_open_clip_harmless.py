"""With in-batch negatives and uniform weights, training is open_clip's own, number for number."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch

from clip_negatives.encoders.open_clip import MODELS
from clip_negatives.integrations.open_clip.guest import CPU_DDP, replaced
from tests import ranks

from .conftest import BATCH, ROWS, logged_losses

UNIFORM = ["--sampler", "in_batch", "--weighting", "uniform"]


def _plain(_: list[str], arguments: list[str]) -> None:
    """Train with open_clip alone."""
    from open_clip_train.main import main

    torch.set_num_threads(1)
    open_clip.add_model_config(MODELS)  # only makes the name of the small model known
    with replaced(CPU_DDP):  # without it, open_clip cannot train on two CPU processes
        main(arguments)


def ours(options: list[str], arguments: list[str]) -> None:
    """Train with the command `train`."""
    torch.set_num_threads(1)
    assert ranks.command(["train", *options, "--", *arguments]) == 0


def trained(
    work: Callable[[list[str], list[str]], None], options: list[str], arguments: list[str], name: str, processes: int = 1
) -> list[str]:
    """Train in new processes, and return the losses that open_clip logged."""
    logs = Path(arguments[arguments.index("--logs") + 1])
    ranks.run(processes, work, options, [*arguments, "--name", name], log=logs.parent / "output" / name)
    return logged_losses(logs / name / "out.log")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--epochs", "2"], id="two epochs"),
        pytest.param(["--accum-freq", "2", "--precision", "amp_bf16", "--workers", "2"], id="accumulation, bf16, workers"),
    ],
)
def test_losses_equal_open_clip(arguments: list[str], more: list[str]) -> None:
    expected = trained(_plain, [], [*arguments, *more], "plain")
    assert len(expected) == (2 if "--epochs" in more else 0.5) * (ROWS // BATCH)
    assert trained(ours, UNIFORM, [*arguments, *more], "ours") == expected


@pytest.mark.parametrize("more", [[], ["--local-loss", "--gather-with-grad"]], ids=["global loss", "local loss"])
def test_losses_equal_open_clip_on_two_processes(arguments: list[str], more: list[str]) -> None:
    line = [*arguments, *more, "--dist-backend", "gloo"]
    expected = trained(_plain, [], line, "plain", processes=2)
    assert len(expected) == ROWS // BATCH // 2
    assert trained(ours, UNIFORM, line, "ours", processes=2) == expected


def test_held_temperature_under_torchrun(arguments: list[str]) -> None:
    """Two processes, started as users start them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "clip_negatives", "train", *UNIFORM, "--temperature", "0.1", "--", *arguments]
    command += ["--epochs", "2", "--dist-backend", "gloo", "--name", "held"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    log = Path(arguments[arguments.index("--logs") + 1]) / "held" / "out.log"
    losses = logged_losses(log)
    assert len(losses) == 2 * ROWS // BATCH // 2
    assert log.read_text().count("Logit Scale: 10.000") == len(losses)


@pytest.mark.parametrize(
    ("sampler", "more"),
    [("swapped_words", []), ("triplets", []), ("triplets", ["--local-loss", "--gather-with-grad"])],
    ids=["captions", "images", "images, local loss"],
)
def test_additions_on_two_processes(arguments: list[str], sampler: str, more: list[str]) -> None:
    line = [*arguments, *more, "--dist-backend", "gloo"]
    losses = trained(ours, ["--sampler", sampler], line, "extra", processes=2)
    assert len(losses) == ROWS // BATCH // 2


def test_losses_of_siglip_equal_open_clip(arguments: list[str]) -> None:
    line, options = [*arguments, "--siglip"], ["--sampler", "in_batch", "--weighting", "siglip"]
    losses = [trained(ours, options, line, "ours"), trained(_plain, [], line, "plain")]
    values = [[float(text.split()[0]) for text in one] for one in losses]
    assert len(values[0]) == ROWS // BATCH
    assert values[0] == pytest.approx(values[1], rel=2e-4)  # the sum is taken in another order, so they differ by rounding
