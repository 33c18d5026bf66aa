"""Campaigns at small size: they run, lose nothing, and can tell what is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import numerics
import soak
import survival

HERE = Path(__file__).parent


def small(campaign: str) -> list[dict[str, Any]]:
    """Run a campaign at small size and return the rows of its result."""
    done = subprocess.run([sys.executable, HERE / f"{campaign}.py", "--small"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (HERE.parents[1] / ".benchmarks").glob(f"*/trust-{campaign}.json")
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


@pytest.mark.parametrize("campaign", ["numerics", "samples", "determinism"])
def test_nothing_is_lost(campaign: str) -> None:
    """What the page promises holds at the small size too."""
    rows = small(campaign)
    assert sum(row["tried"] for row in rows) > 50
    assert [row for row in rows if row["lost"] or row["survived"] != row["tried"]] == []


@pytest.mark.parametrize(
    ("found", "told"),
    [(0.0, "a loss of 0 for 2"), (float("nan"), "not finite"), (2.1, "a loss of 2.1"), (2.0, None)],
)
def test_a_wrong_loss_is_told(found: float, told: str | None) -> None:
    """A loss that is silently 0, not finite or far from the exact one is lost."""
    gradient = torch.ones(3, 2, dtype=torch.float64)
    condition = numerics.Condition("x", (torch.eye(2), torch.eye(2)), scale=1.0)
    exact = [torch.tensor(2.0, dtype=torch.float64), gradient, gradient]
    said = numerics.fault([torch.tensor(found, dtype=torch.float64), *exact[1:]], exact, condition, "float32")
    assert said == told if told is None else said is not None and told in said
    assert numerics.fault([exact[0], 0 * gradient, gradient], exact, condition, "float32") is not None
    assert numerics.fault([0 * exact[0], gradient, gradient], [0 * exact[0], gradient, gradient], condition, "float32")


def test_what_grows_is_not_flat() -> None:
    """A leak of one file a look, or of memory, is told."""

    def looks(files: int, memory: float) -> list[soak.Look]:
        return [
            soak.Look(10.0 * row, row, 1000.0 + memory * row, 700.0, 900.0, 17 + files * row, 6, 3, 0, 0.0) for row in range(40)
        ]

    assert all(flat for _, _, flat in soak.flat(looks(0, 0.0)).values())
    assert [name for name, (*_, flat) in soak.flat(looks(1, 0.0)).items() if not flat] == ["files"]
    assert [name for name, (*_, flat) in soak.flat(looks(0, 2.0)).items() if not flat] == ["resident_mib"]


def test_a_look_at_a_process_tree() -> None:
    """A process and its child are seen, with their memory and files."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            while len(soak.tree(process.pid)) < 2:
                assert process.poll() is None
            seen = soak.look(process.pid, 1.0, HERE / "absent.log")
        finally:
            process.kill()
    assert seen is not None
    assert seen.processes == 2
    assert 0 < seen.resident_mib < 200
    assert seen.files >= 3


def test_the_page_counts_what_result_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of the summary are those of the rows."""
    row = {"subject": "csv", "what": "bytes flipped", "tried": 1000, "survived": 999, "lost": 1, "outcome": "DataError"}
    result = {"command": "python x.py", "version": "1", "python": "3.11", "seconds": 200, "rows": [row, row]}
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "trust-fuzz.json").write_text(json.dumps(result))
    monkeypatch.setattr(survival, "RESULTS", tmp_path)
    text = survival.page()
    assert "| [Damaged and hostile input](#damaged-and-hostile-input) | 2,000 | 1,998 | 2 |" in text
    assert "| csv | bytes flipped | 1,000 | 999 | 1 | DataError |" in text
    assert "3 minutes on `machine`" in text
