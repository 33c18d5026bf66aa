"""The measurements of scale run at small size and write what docs/scale.md is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_rates() -> None:
    """Every step is measured at every size."""
    command = [sys.executable, str(HERE / "rates.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (HERE.parents[1] / ".benchmarks").glob("*/scale-rates.json")
    rows = json.loads(file.read_text())["rows"]
    assert {row["step"] for row in rows} >= {"labels", "look up labels", "generate", "reshard", "plan of an epoch"}
    assert all(row["per_second"] > 0 for row in rows)
