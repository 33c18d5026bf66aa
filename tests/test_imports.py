"""What an import costs: the package and its command line load nothing heavy, training nothing that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "faiss",
    "triton",
    "open_clip",
    "open_clip_train",
    "matplotlib",
    "sklearn",
    "pyarrow",
    "pandas",
    "transformers",
}
NOT_FOR_TRAINING = HEAVY - {"torch", "pyarrow"} | {"jinja2", "timm", "torchvision", "lightning", "sentence_transformers"}


def _imported(code: str) -> set[str]:
    """Return the modules that a fresh process has after the code."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


def _packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


COMMAND = "from clip_negatives.cli import main; main([{argument!r}], standalone_mode=False)"


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import clip_negatives", 80),
        (COMMAND.format(argument="--version"), 250),
        (COMMAND.format(argument="--help"), 450),  # reads the first line of each command, and rich
    ],
    ids=["package", "--version", "--help"],
)
def test_what_needs_no_torch_loads_few_modules_and_nothing_heavy(code: str, most: int) -> None:
    """Python itself has about 35 modules, and torch over 1,000."""
    modules = _imported(code)
    assert _packages(modules) & HEAVY == set()
    assert len(modules) < most


def test_training_loads_torch_and_nothing_that_it_does_not_use() -> None:
    packages = _packages(_imported("import clip_negatives.losses.module\nfrom clip_negatives import NegativesClipLoss, attach"))
    assert "torch" in packages
    assert packages & NOT_FOR_TRAINING == set()
