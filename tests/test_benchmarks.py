"""What the benchmarks make of losses that cannot run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def fails_with(error):
    def step():
        raise error

    return step


def test_what_others_cannot_run_is_a_result_and_what_we_cannot_an_error():
    from losses import cannot

    assert cannot("inf-cl", lambda: None) is None
    assert cannot("inf-cl", fails_with(RuntimeError("shape is invalid\nmore"))) == "RuntimeError: shape is invalid"
    assert cannot("triton weighted", fails_with(torch.OutOfMemoryError("too much"))) == "out of memory"
    with pytest.raises(RuntimeError, match="shape"):
        cannot("triton weighted", fails_with(RuntimeError("shape")))


def test_a_process_out_of_memory_is_told_from_one_that_fails(monkeypatch):
    import memory

    for text, expected in (("torch.OutOfMemoryError: too much", torch.OutOfMemoryError), ("?", subprocess.CalledProcessError)):
        failed = fails_with(subprocess.CalledProcessError(1, "python", stderr=text))
        monkeypatch.setattr(memory.subprocess, "run", lambda *given, failed=failed, **how: failed())
        with pytest.raises(expected):
            memory.peak_mib("chunked none", 8, 8, 2)


def test_the_page_says_why_something_was_not_measured():
    import report

    row = {"group": "loss, of two", "stats": {"min": 1.0}, "extra_info": {"name": "inf-cl", "cannot": "out of memory"}}
    other = {"group": "loss, of two", "stats": {"min": 1.0}, "extra_info": {"name": "triton", "seconds": 0.5}}
    (table,) = report._tables([row, other])
    assert "| inf-cl | out of memory | out of memory |" in table
    assert "| triton | 0.5 | – |" in table


def test_rates_are_positive_and_the_floor_grows_with_the_pairs(monkeypatch):
    import losses

    monkeypatch.setattr(losses, "matmul_rate", lambda: 1e12)
    monkeypatch.setattr(losses, "copy_rate", lambda: 1e9)
    few, many = losses.floor_seconds(64, 512), losses.floor_seconds(65536, 512)
    assert few == pytest.approx(6 * 64 * 512 * losses.DTYPE.itemsize / 1e9)
    assert many == pytest.approx(8 * 65536**2 * 512 / 1e12)


def test_scaling_of_k_means_is_measured(tmp_path):
    """At the small size: that it runs, and that what is compared is a clustering of the same samples."""
    script = ROOT / "benchmarks" / "scale" / "kmeans_scaling.py"
    copy = tmp_path / "benchmarks"
    shutil.copytree(script.parent, copy / "scale", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "conftest.py"):
        shutil.copy(ROOT / "benchmarks" / name, copy)
    command = [sys.executable, copy / "scale" / script.name, "--small"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob(".benchmarks/*/scale-kmeans.json")
    rows = json.loads(file.read_text())["rows"]
    assert [row["n"] for row in rows] == [1000, *[2000] * 6]
    assert [row["by"] for row in rows[3:5]] == ["faiss, all rows", "scikit-learn, mini-batches"]
    same = [row["mean_cosine"] for row in rows[:5]]
    assert max(same) - min(same) < 0.03
    assert min(same) > 0.5
    assert rows[-1]["options"]["levels"] == 2
