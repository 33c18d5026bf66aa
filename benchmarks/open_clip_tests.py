"""open_clip's own tests with our loss in place of ClipLoss: python benchmarks/open_clip_tests.py CHECKOUT [-- OPTIONS].

The tests of a checkout of open_clip run twice: as they are, and with this file as a pytest plugin. The plugin replaces
`ClipLoss` by `NegativesClipLoss` without weights. The tests run in a copy, because they write logs. The exit code is 1 if a
test fails only with our loss.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TESTS = ("tests/test_*loss*.py", "tests/test_*task*.py", "tests/test_training*.py")
CREATED = "losses created"


def pytest_configure() -> None:
    """Replace `ClipLoss` before the tests import it."""
    import open_clip.loss

    from clip_negatives import NegativesClipLoss

    class Replacement(NegativesClipLoss):
        created = 0

        def __init__(self, *values: Any, **options: Any) -> None:
            Replacement.created += 1
            super().__init__(*values, **options)

    original = open_clip.loss.ClipLoss
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "open_clip" and getattr(module, "ClipLoss", None) is original:
            module.ClipLoss = Replacement  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _count_losses(record_property: Callable[[str, object], None]) -> Iterator[None]:
    import open_clip.loss

    before = open_clip.loss.ClipLoss.created
    yield
    record_property(CREATED, open_clip.loss.ClipLoss.created - before)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a test: passed, skipped, failure or error, with the first line of its message."""

    kind: str
    message: str = ""
    created: int = 0


def outcomes(file: Path) -> dict[str, Outcome]:
    """Return the outcome of each test from a JUnit file of pytest."""
    read: dict[str, Outcome] = {}
    for case in ET.parse(file).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        kinds = [child for child in case if child.tag in ("skipped", "failure", "error")]
        message = (kinds[0].get("message") or "").partition("\n")[0] if kinds else ""
        created = sum(int(node.get("value", 0)) for node in case.iter("property") if node.get("name") == CREATED)
        if name not in read or kinds:  # an error after a test is a second case of the same name
            read[name] = Outcome(kinds[0].tag if kinds else "passed", message, created)
    return read


def run_tests(checkout: Path, arguments: list[str], *, replaced: bool) -> dict[str, Outcome]:
    """Run the tests in a copy of the checkout, and return their outcomes; SystemExit if pytest itself fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy, report = Path(folder, "checkout"), Path(folder, "report.xml")
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "docs", "logs"))
        paths = [str(copy / "src"), *sys.path[1:], str(Path(__file__).parent)]
        plugin = ["-p", Path(__file__).stem] if replaced else []
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *plugin, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or not report.exists():  # 1: tests fail
            last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise SystemExit(f"pytest ended with exit code {done.returncode}:\n{last}")
        return outcomes(report)


def listing(title: str, tests: dict[str, Outcome]) -> list[str]:
    """Return a title and a line for each test, or nothing without tests."""
    return [title, *(f"  {name}: {outcome.message}" for name, outcome in tests.items())] if tests else []


def comparison(plain: dict[str, Outcome], ours: dict[str, Outcome]) -> tuple[str, bool]:
    """Return the text of the comparison, the answer first, and whether all tests that pass also pass with our loss."""
    absent = Outcome("absent", "did not run with our loss")
    passed = [name for name, outcome in plain.items() if outcome.kind == "passed"]
    broken = {name: ours.get(name, absent) for name in passed if ours.get(name, absent).kind != "passed"}
    skipped = {name: outcome for name, outcome in plain.items() if outcome.kind == "skipped"}
    failed = {name: outcome for name, outcome in plain.items() if outcome.kind in ("failure", "error")}
    created = sum(ours[name].created > 0 for name in passed if name in ours)
    answer = f"All {len(passed)} tests that pass with open_clip's loss pass with ours"
    if broken:
        answer = f"{len(broken)} of {len(passed)} tests that pass with open_clip's loss fail with ours"
    elif not created:
        answer = "Nothing was tested: no test that passes creates the loss"
    counts = f"{created} of them create the loss; {len(skipped)} were skipped, {len(failed)} fail without our loss"
    lines = [f"{answer}; {counts}.", *listing("Fail with our loss only:", broken), *listing("Skipped:", skipped)]
    lines += listing("Fail without our loss (a model that must be downloaded needs a network):", failed)
    return "\n".join(lines), not broken and created > 0


def main() -> int:
    """Run the tests twice and print the comparison; return the exit code."""
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of open_clip, with src and tests")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="test files of the checkout, as glob patterns")
    options = parser.parse_args(given[:split])
    version = options.checkout / "src" / "open_clip" / "version.py"
    if not version.is_file():
        parser.error(f"{options.checkout} is no checkout of open_clip: it has no src/open_clip/version.py.")
    files = sorted({file.relative_to(options.checkout) for glob in options.tests for file in options.checkout.glob(glob)})
    if not files:
        parser.error(f"{options.checkout} has no tests {' '.join(options.tests)}. Name its test files with --tests.")
    arguments = [*map(str, files), *given[split + 1 :]]
    text, equal = comparison(*(run_tests(options.checkout, arguments, replaced=replaced) for replaced in (False, True)))
    print(f"{text}\nopen_clip {runpy.run_path(str(version))['__version__']}: {', '.join(file.name for file in files)}")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
