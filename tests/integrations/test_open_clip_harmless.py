"""With in-batch negatives and uniform weights, training is open_clip's own, number for number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BATCH, ROWS, logged_losses

PLAIN = """
import sys, open_clip
from clip_negatives.encoders.open_clip import MODELS
open_clip.add_model_config(MODELS)  # only makes the name of the small model known
from open_clip_train.main import main
from clip_negatives.integrations.open_clip.guest import CPU_DDP, replaced
with replaced(CPU_DDP):  # without it, open_clip cannot train on two CPU processes
    main(sys.argv[1:])
"""

OURS = ["-m", "clip_negatives", "train", "--sampler", "in_batch", "--weighting", "uniform", "--"]


def _train(start: list[str], arguments: list[str], name: str, processes: int = 1) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        # Python 3.11's argparse takes --logs for an abbreviation of torchrun's own --logs-specs, unless "--" stands before it.
        start = start if "--" in start else ["--", *start]
    command = [*launcher, *start, *arguments, "--name", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return logged_losses(Path(arguments[arguments.index("--logs") + 1]) / name / "out.log")


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--epochs", "2"], id="two epochs"),
        pytest.param(["--accum-freq", "2", "--precision", "amp_bf16", "--workers", "2"], id="accumulation, bf16, workers"),
    ],
)
def test_losses_equal_open_clip(arguments: list[str], tmp_path: Path, more: list[str]) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text(PLAIN)
    expected = _train([str(plain)], [*arguments, *more], "plain")
    ours = _train(OURS, [*arguments, *more], "ours")
    assert len(expected) == (2 if "--epochs" in more else 0.5) * (ROWS // BATCH)
    assert ours == expected


@pytest.mark.parametrize("more", [[], ["--local-loss", "--gather-with-grad"]], ids=["global loss", "local loss"])
def test_losses_equal_open_clip_on_two_processes(arguments: list[str], tmp_path: Path, more: list[str]) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text(PLAIN)
    more = [*more, "--dist-backend", "gloo"]
    expected = _train([str(plain)], [*arguments, *more], "plain", processes=2)
    ours = _train(OURS, [*arguments, *more], "ours", processes=2)
    assert len(expected) == ROWS // BATCH // 2
    assert ours == expected


def test_held_temperature_on_two_processes(arguments: list[str]) -> None:
    ours = [*OURS[:-1], "--temperature", "0.1", "--"]
    losses = _train(ours, [*arguments, "--epochs", "2", "--dist-backend", "gloo"], "held", processes=2)
    assert len(losses) == 2 * ROWS // BATCH // 2
    log = Path(arguments[arguments.index("--logs") + 1]) / "held" / "out.log"
    assert log.read_text().count("Logit Scale: 10.000") == len(losses)


@pytest.mark.parametrize(
    ("sampler", "more"),
    [("swapped_words", []), ("triplets", []), ("triplets", ["--local-loss", "--gather-with-grad"])],
    ids=["captions", "images", "images, local loss"],
)
def test_additions_on_two_processes(arguments: list[str], sampler: str, more: list[str]) -> None:
    ours = [*OURS[:2], "train", "--sampler", sampler, "--"]
    losses = _train(ours, [*arguments, *more, "--dist-backend", "gloo"], "extra", processes=2)
    assert len(losses) == ROWS // BATCH // 2


def test_losses_of_siglip_equal_open_clip(arguments: list[str], tmp_path: Path) -> None:
    plain = tmp_path / "plain.py"
    plain.write_text(PLAIN)
    expected = _train([str(plain)], [*arguments, "--siglip"], "plain")
    ours = _train([word.replace("uniform", "siglip") for word in OURS], [*arguments, "--siglip"], "ours")
    assert len(ours) == ROWS // BATCH
    # The sum is taken in another order: equal within rounding, not to the bit.
    values = [[float(text.split()[0]) for text in losses] for losses in (ours, expected)]
    assert values[0] == pytest.approx(values[1], rel=2e-4)
