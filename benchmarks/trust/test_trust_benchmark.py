"""Campaigns at small size, the page, and the rows of other versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numerics
import pytest
import survival
import torch
from run import write_json


@pytest.mark.parametrize("campaign", ["numerics", "determinism"])
def test_nothing_is_lost(campaign: str) -> None:
    """What the page promises holds at the small size too."""
    script = Path(__file__).with_name(f"{campaign}.py")
    done = subprocess.run([sys.executable, script, "--small"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = survival.read(campaign, small=True)["rows"]
    assert sum(row["tried"] for row in rows) > 50
    assert [row for row in rows if row["lost"] or row["survived"] != row["tried"]] == []


@pytest.mark.parametrize(("loss", "fault"), [(float("nan"), "not finite"), (2.1, "loss of norm 2.1"), (2.0, "None")])
def test_a_wrong_loss_is_noticed(loss: float, fault: str) -> None:
    """A loss or gradient that is silently 0, not finite or far from the exact one is lost."""
    gradient = torch.ones(3, 2, dtype=torch.float64)
    condition = numerics.Condition("x", (torch.eye(2), torch.eye(2)), scale=1.0)
    zero, exact = 0 * gradient[0, 0], [2 * gradient[0, 0], gradient, gradient]
    assert fault in str(numerics.fault([loss * gradient[0, 0], *exact[1:]], exact, condition, "float32"))
    assert numerics.fault([zero, *exact[1:]], exact, condition, "float32") is not None
    assert numerics.fault([exact[0], 0 * gradient, gradient], exact, condition, "float32") is not None
    assert numerics.fault([zero, *exact[1:]], [zero, *exact[1:]], condition, "float32") == "a loss of exactly 0"


def test_the_page_counts_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of the summary are those of the rows."""
    row = {"subject": "csv", "what": "bytes flipped", "tried": 1000, "survived": 999, "lost": 1, "outcome": "DataError"}
    result = {"command": "python x.py", "version": "1", "python": "3.11", "seconds": 200, "rows": [row, row]}
    write_json(tmp_path / "machine" / "trust-fuzz.json", result)
    monkeypatch.setattr(survival, "RESULTS", tmp_path)
    text = survival.page()
    assert "| [Damaged and hostile input](#damaged-and-hostile-input) | 2,000 | 1,998 | 2 |" in text
    assert "| csv | bytes flipped | 1,000 | 999 | 1 | DataError |" in text
    assert "3 minutes on `machine`" in text


def test_each_environment_replaces_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row counts the tests that pytest ran, and names versions that conflict; a later run replaces it."""
    monkeypatch.setattr(survival, "result_file", lambda name, small: tmp_path / name)
    monkeypatch.setattr(survival, "conflicts", list)
    for name, lost, code in (("lowest", 1, 1), ("newest", 0, 0), ("lowest", 0, 0)):
        junit = tmp_path / "junit.xml"
        junit.write_text(f'<testsuites><testsuite tests="3" failures="{lost}" errors="0" skipped="1" time="2.0"/></testsuites>')
        assert survival.record(name, str(junit), small=True) == code
        rows = {row["subject"].split(",")[0]: row for row in survival.read("compatibility", small=True)["rows"]}
        assert (rows[name]["tried"], rows[name]["survived"], rows[name]["lost"]) == (2, 2 - lost, lost)
    assert list(rows) == ["lowest", "newest"]
    monkeypatch.setattr(survival, "conflicts", lambda: ["The package `a` requires `b`."])
    assert survival.record("lowest", str(junit), small=True) == 1
    assert survival.read("compatibility", small=True)["rows"][0]["outcome"] == "pip check: The package `a` requires `b`."
