"""The command line with a stdout that is full, closed, or lacks characters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from clip_negatives.storage.clusters_folder import write_clusters
from tests.conftest import make_clusters

COMMANDS = (["plugins"], ["catalogue", "info"], ["--help"], ["--version"])


def run(arguments: list[str], stdout: str = "", unbuffered: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    words = " ".join([sys.executable, "-m", "clip_negatives", *arguments])
    names = {**os.environ, "PYTHONUNBUFFERED": unbuffered, **environment}
    return subprocess.run(["bash", "-c", f"{words} {stdout}"], capture_output=True, text=True, env=names, check=False)


def errors(shown: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on stderr, without the next command to run."""
    return [line for line in shown.stderr.splitlines() if not line.startswith("Next: ")]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_full_disk(arguments: list[str], unbuffered: str) -> None:
    shown = run(arguments, ">/dev/full", unbuffered)
    assert shown.stderr == "Error: The output cannot be written: No space left on device. Write it to another file.\n"
    assert shown.returncode == 2


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_closed_stdout(arguments: list[str]) -> None:
    shown = run(arguments, ">&-")
    assert (shown.returncode, errors(shown)) == (0, [])


def test_characters_that_stdout_lacks(tmp_path: Path) -> None:
    """The table has a dash, because the data have no false negative."""
    clusters, keys = make_clusters(64, 4, 4), [str(row) for row in range(64)]
    write_clusters(tmp_path / "clusters", clusters, pa.table({"key": keys, "text": keys}), {})
    shown = run(["meter", str(tmp_path / "clusters"), "--batch-size", "8"], PYTHONIOENCODING="ascii")
    assert (shown.returncode, errors(shown)) == (0, [])
    assert "\\u2013" in shown.stdout


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    shown = run(["plugins", "new", "mine", "--output", f"{tmp_path}/a\udcff"])
    assert (shown.returncode, errors(shown)) == (0, [])
    assert f"{tmp_path}/a\\udcff/mine: see its README" in shown.stdout
