"""The comparison of open_clip's own tests, on a small checkout with made-up tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "open_clip_tests.py"
SAME = """
import pytest, torch
from open_clip import ClipLoss, create_loss
from argparse import Namespace

def test_value():
    features = torch.nn.functional.normalize(torch.eye(3), dim=1)
    assert round(ClipLoss()(features, features, torch.tensor(3.0)).item(), 4) == 0.0949

def test_factory():
    args = Namespace(distill=False, model="RN50", siglip=False, local_loss=False, gather_with_grad=False, rank=0, world_size=1)
    args.horovod = False
    assert type(create_loss(args)) is ClipLoss

def test_without_loss():
    pass

@pytest.mark.skip(reason="needs a GPU")
def test_skipped():
    pass

def test_failing():
    raise OSError("no network")
"""
OWN = "from open_clip import ClipLoss\ndef test_own():\n    assert ClipLoss.__mro__[1].__name__ == 'Module'\n"


def compared(checkout: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, checkout, *more], capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of the installed open_clip, with other tests."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "open_clip").symlink_to(Path(open_clip.__file__).parent)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_loss.py").write_text(SAME)
    return tmp_path


def test_equal_outcomes(checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    done = compared(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "All 3 tests that pass with open_clip's loss pass with ours; 2 of them create the loss; 1 were skipped, 1 fail without "
        "our loss.",
        "Skipped:",
        "  tests.test_loss::test_skipped: needs a GPU",
        "Fail without our loss (a model that must be downloaded needs a network):",
        "  tests.test_loss::test_failing: OSError: no network",
        f"open_clip {open_clip.__version__}: test_loss.py",
    ]
    assert sorted(checkout.rglob("*")) == before


def test_a_test_that_fails_only_with_our_loss(checkout: Path) -> None:
    (checkout / "tests" / "test_own_loss.py").write_text(OWN)
    done = compared(checkout, "--", "-k", "own or value")
    assert done.returncode == 1
    assert done.stdout.startswith("1 of 2 tests that pass with open_clip's loss fail with ours; 1 of them create the loss;")
    assert "Fail with our loss only:\n  tests.test_own_loss::test_own: AssertionError" in done.stdout


def test_tests_without_the_loss_are_no_evidence(checkout: Path) -> None:
    done = compared(checkout, "--", "-k", "without_loss")
    assert done.returncode == 1
    assert done.stdout.startswith("Nothing was tested: no test that passes creates the loss")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "is no checkout of open_clip: it has no src/open_clip/version.py."),
        ([".", "--tests", "tests/test_absent.py"], "has no tests tests/test_absent.py. Name its test files with --tests."),
        ([".", "--", "--no-such-option"], "pytest ended with exit code 4:"),
    ],
)
def test_errors(checkout: Path, arguments: list[str], words: str) -> None:
    done = compared(checkout / arguments[0], *arguments[1:])
    assert done.returncode != 0
    assert words in done.stderr
