"""The rows of environments are counted from what pytest wrote, and each replaces its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import compatibility
import record

SOME = "import pytest\ndef test_a(): pass\ndef test_b(): assert False\ndef test_c(): pytest.skip('no')\n"
ALL = "def test_a(): pass\ndef test_b(): pass\n"


def _junit(folder: Path, name: str, code: str) -> Path:
    (folder / f"test_{name}.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_{name}.py", f"--junitxml={name}.xml"]
    subprocess.run(command, cwd=folder, check=False, capture_output=True)
    return folder / f"{name}.xml"


def test_each_environment_replaces_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with a lost test says so and fails; the next run of that environment takes its place beside the others."""
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(compatibility, "conflicts", list)
    some, whole = _junit(tmp_path, "some", SOME), _junit(tmp_path, "all", ALL)
    assert compatibility.main(["lowest", str(some), "--small"]) == 1
    assert compatibility.main(["newest", str(whole), "--small"]) == 0
    rows = record.read("compatibility", small=True)["rows"]
    assert [(row["tried"], row["survived"], row["lost"]) for row in rows] == [(2, 1, 1), (2, 2, 0)]
    assert compatibility.main(["lowest", str(whole), "--small"]) == 0
    result = record.read("compatibility", small=True)
    assert [(row["tried"], row["lost"]) for row in result["rows"]] == [(2, 0), (2, 0)]
    assert result["environments"]["lowest"]["versions"]["torch"] in result["rows"][0]["what"]


def test_versions_that_do_not_fit_together_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `uv pip check` finds is named in the row."""
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(compatibility, "conflicts", lambda: ["The package `a` requires `b`."])
    assert compatibility.main(["lowest", str(_junit(tmp_path, "all", ALL)), "--small"]) == 1
    (row,) = record.read("compatibility", small=True)["rows"]
    assert row["outcome"] == "pip check: The package `a` requires `b`."
