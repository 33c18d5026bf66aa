"""The campaign of faults runs at small size, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_faults() -> None:
    """Each fault is injected once, and survived."""
    command = [sys.executable, str(HERE / "faults.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (HERE.parents[1] / ".benchmarks").glob("*/trust-faults.json")
    rows = json.loads(file.read_text())["rows"]
    assert {row["subject"] for row in rows} == {"prepare", "generate"}
    assert [(row["tried"], row["survived"], row["lost"]) for row in rows] == [(1, 1, 0)] * 6, done.stdout
