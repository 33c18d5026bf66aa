"""Plugins that somebody else wrote, built and installed beside our built wheel, are listed, checked and trained with."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from clip_negatives.scaffold import new_plugin
from tests.pairs import export

ROOT = Path(__file__).resolve().parents[1]
THEIRS = Path(__file__).parent / "third_party" / "clip_negatives_neighbours"


def _run(*command: str | Path, **more: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BEGUN = {"my-sampler": "negative_sampler", "my-weighting": "loss_weighting", "my-clusterer": "clusterer"}
"""Plugins that are installed as `new_plugin` writes them."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a fresh venv with all wheels; everything else is seen through a .pth, as it is 5 GB."""
    folder = tmp_path_factory.mktemp("third_party")
    begun = [new_plugin(name, kind, directory=folder) for name, kind in BEGUN.items()]
    for source in (ROOT, THEIRS, *begun):
        _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "wheels", source)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *sorted((folder / "wheels").glob("*.whl")))
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    # Paths of a .pth come after the venv's own packages, so both wheels are found before what this runs from.
    (site / "heavy.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert str(site) in _run(python, "-c", "import clip_negatives; print(clip_negatives.__file__)")
    return python


def test_sampler_has_at_most_25_lines() -> None:
    assert len((THEIRS / "clip_negatives_neighbours" / "__init__.py").read_text().splitlines()) <= 25


COMMANDS = """
import shlex, sys
from clip_negatives.cli import main
for line in sys.argv[1:]:
    main(shlex.split(line), standalone_mode=False)
    print("END", flush=True)
"""


def _run_commands(python: Path, *commands: list[str], **more: object) -> list[str]:
    """Run commands in one process, as each process takes seconds to import torch, and return what each one prints."""
    return _run(python, "-c", COMMANDS, *map(shlex.join, commands), **more).split("END\n")[:-1]


def test_they_conform(python: Path) -> None:
    names = [name.replace("-", "_") for name in ("neighbours", *BEGUN)]
    reports = _run_commands(python, *(["plugins", "check", name] for name in names))
    for name, shown in zip(names, reports, strict=True):
        assert f" {name}" in shown
        assert "pickles" in shown
        assert "failed" not in shown


def test_the_test_that_is_written_passes(python: Path) -> None:
    written = python.parents[2] / "my-weighting"
    shown = _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=written)
    assert "passed" in shown


def test_it_is_listed(python: Path) -> None:
    shown = _run(python, "-m", "clip_negatives", "plugins")
    (line,) = re.findall(r"^  neighbours .*\n(?: {5}.*\n)*", shown, re.MULTILINE)
    assert line.split()[-2:] == ["(clip-negatives-neighbours", "0.3.0)"]
    shown = _run(python, "-m", "clip_negatives", "plugins", "show", "neighbours")
    assert "plugin neighbours of clip-negatives-neighbours 0.3.0\n" in shown


def test_they_are_trained_with(python: Path, tmp_path: Path) -> None:
    data = export(tmp_path / "data", "test", range(96), format="csv") / "test.csv"
    arguments = ["--train-data", str(data), "--dataset-type", "csv", "--model", "clip-negatives-tiny", "--batch-size", "32"]
    arguments += ["--epochs", "1", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--log-every-n-steps", "1"]
    arguments += ["--logs", str(tmp_path / "logs"), "--name"]
    methods = {"neighbours:run=8": "uniform", "my_sampler:run=2": "my_weighting"}
    options = [["--sampler", sampler, "--weighting", weighting] for sampler, weighting in methods.items()]
    lines = [["train", *given, "--", *arguments, f"run-{number}"] for number, given in enumerate(options)]
    _run_commands(python, *lines, env={**os.environ, "CLIP_NEGATIVES_CACHE": str(tmp_path / "cache")})
    for number, sampler in enumerate(methods):
        log = (tmp_path / "logs" / f"run-{number}" / "out.log").read_text()
        assert log.count("Contrastive_loss") == 3
        assert f"sampler {sampler}" in log
