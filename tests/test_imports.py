"""What an import costs: the package and its command line load nothing heavy, training nothing that it does not use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIMIT = 0.3
"""Seconds of the quickest of `TRIES` imports, in processes of their own; it takes a tenth of that."""

TRIES = 3

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


def _imported(code: str) -> tuple[float, set[str]]:
    """Return the seconds that the code takes in a fresh process, and the packages that it leaves imported."""
    timed = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        f"{code}\n"
        "seconds = time.perf_counter() - start\n"
        "import json\n"
        "print(json.dumps([seconds, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True, text=True)
    seconds, names = json.loads(done.stdout.splitlines()[-1])
    return seconds, set(names)


COMMAND = "from clip_negatives.cli import main; main([{argument!r}], standalone_mode=False)"


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("import clip_negatives", LIMIT),
        (COMMAND.format(argument="--version"), LIMIT),
        (COMMAND.format(argument="--help"), 5 * LIMIT),  # reads the first line of each command, and rich
    ],
    ids=["package", "--version", "--help"],
)
def test_what_needs_no_torch_is_quick_and_loads_nothing_heavy(code: str, limit: float) -> None:
    found = [_imported(code) for _ in range(TRIES)]
    assert [names & HEAVY for _, names in found] == [set()] * TRIES
    assert min(seconds for seconds, _ in found) < limit


def test_training_loads_torch_and_nothing_that_it_does_not_use() -> None:
    _, names = _imported("import clip_negatives.losses.module\nfrom clip_negatives import NegativesClipLoss, attach")
    assert "torch" in names
    assert names & NOT_FOR_TRAINING == set()
