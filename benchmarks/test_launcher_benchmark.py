"""Seconds per step of ``clip-negatives train`` relative to ``open_clip_train``, on the catalogue of the package.

Both train at the same time, each on its own core, with the same data, model, seed and arguments, and again with the cores
exchanged, so that other work of the machine slows both. A step is what open_clip logs as its batch time, with data loading. The
model is small, so that the overhead of loss and loader is a large share.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clip_negatives import Method, catalogue

FULL = os.environ.get("BENCHMARK_FULL") == "1"
ROUNDS = 5 if FULL else 1
SPLIT = "train" if FULL else "test"
STEPS_OF_WARMUP = 3

PLAIN = """
import sys, open_clip
from clip_negatives.encoders.open_clip import MODELS
open_clip.add_model_config(MODELS)  # only makes the name of the small model known
from open_clip_train.main import main
main(sys.argv[1:])
"""


def training(tmp: Path) -> list[str]:
    """Return open_clip's arguments for one epoch over the catalogue."""
    data = catalogue.export(tmp / "catalogue", split=SPLIT) / f"{SPLIT}.csv"
    return [
        *("--train-data", str(data), "--dataset-type", "csv", "--model", "clip-negatives-tiny", "--batch-size", "128"),
        *("--epochs", "1", "--workers", "0", "--precision", "fp32", "--device", "cpu", "--log-every-n-steps", "1"),
        *("--logs", str(tmp / "logs")),
    ]


def start(program: list[str], arguments: list[str], name: str, core: int) -> subprocess.Popen[bytes]:
    """Start a training on one core."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments, "--name", name],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def seconds_per_step(arguments: list[str], name: str) -> float:
    """Return the median seconds of a step in open_clip's log, without the first few."""
    log = Path(arguments[arguments.index("--logs") + 1]) / name / "out.log"
    seconds = [float(figure) for figure in re.findall(r"Batch \(t\): ([\d.]+)", log.read_text())]
    return statistics.median(seconds[STEPS_OF_WARMUP:])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="needs Linux and two cores")
@pytest.mark.parametrize("method", ["in_batch", "default", "paper"])
def test_launcher(benchmark: Any, request: Any, tmp_path: Path, method: str) -> None:
    """Compare our launcher, with in-batch negatives, our default and the paper's method, with open_clip."""
    (tmp_path / "plain.py").write_text(PLAIN)
    arguments = training(tmp_path)
    clusters = tmp_path / "clusters"
    data = arguments[arguments.index("--train-data") + 1]
    subprocess.run([sys.executable, "-m", "clip_negatives", "prepare", data, str(clusters)], check=True, capture_output=True)
    chosen = Method.parse(method)
    negatives = ["--sampler", chosen.sampler, "--weighting", chosen.weighting]
    ours = ["-m", "clip_negatives", "train", "--clusters", str(clusters), *negatives, "--"]
    benchmark.group = "launcher, the small model on the catalogue, batches of 128"
    ratios: list[float] = []
    seconds: dict[str, list[float]] = {"open_clip": [], method: []}

    def one_round() -> None:
        """Train both at once, each on its core, and once more with the cores exchanged."""
        logs = 0.0
        for core in (0, 1):
            number = len(seconds[method])
            pair = {"open_clip": ([str(tmp_path / "plain.py")], core), method: (ours, 1 - core)}
            names = {name: f"{name}-{number}" for name in pair}
            running = [start(program, arguments, names[name], on) for name, (program, on) in pair.items()]
            assert [process.wait() for process in running] == [0, 0], "A training failed."
            for name in pair:
                seconds[name].append(seconds_per_step(arguments, names[name]))
            logs += math.log(seconds[method][-1] / seconds["open_clip"][-1])
        ratios.append(math.exp(logs / 2))

    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    figures = {"method": method, "batch_size": 128, "over_open_clip": statistics.median(ratios), "rounds": ratios}
    figures["seconds_per_step"] = seconds
    benchmark.extra_info.update(figures)
    request.config.pluginmanager.get_plugin("terminalreporter").write_line(f"\n{method}: {figures}")
