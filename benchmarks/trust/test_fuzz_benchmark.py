"""The fuzzing campaign runs, notes what it finds, and what it found before stays mended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import campaigns
from readers import READERS, Reader

from clip_negatives.errors import DataError

HERE = Path(__file__).parent


def test_small_campaign() -> None:
    """Every reader is tried, and nothing is lost."""
    command = [sys.executable, str(HERE / "fuzz.py"), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (HERE.parents[1] / ".benchmarks").glob("*/trust-fuzz.json")
    rows = json.loads(file.read_text())["rows"]
    assert [row["subject"] for row in rows] == list(READERS)
    for row in rows:
        assert row["tried"] == row["survived"] > 0
        assert row["lost"] == 0


@pytest.mark.parametrize("name", sorted(folder.name for folder in campaigns.CORPUS.iterdir()))
def test_what_was_found_stays_mended(name: str) -> None:
    """The inputs of the corpus are read, or refused as documented."""
    assert len(list((campaigns.CORPUS / name).iterdir())) > 0
    assert campaigns.replay(name) == []


class _Numbered(Random):
    """Know the number of the input that is drawn from it."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.number = int(seed.split()[-1])


def _faulty(scratch: Path) -> Reader:
    """Return a reader that has every fault."""

    def read(kind: str, content: bytes) -> bool:
        if content == b"hang":
            time.sleep(60)
        if content == b"crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if content == b"words":
            raise DataError("bad")
        if content == b"other":
            raise KeyError("x")
        if content == b"memory":
            bytearray(2**28)[:: 2**12] = b"\1" * 2**16
        if content == b"refused":
            raise DataError("Expected something, got something else. Do something.")
        return content == b"aside"

    inputs = (b"hang", b"crash", b"words", b"other", b"memory", b"refused", b"aside", b"read")

    def make(rng: Random) -> tuple[str, bytes]:
        assert isinstance(rng, _Numbered)
        return "bin", inputs[rng.number]

    return Reader("all of it", (DataError,), make, read)


def test_every_kind_of_loss_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hangs, crashes, other errors, errors that say nothing, and memory; and the reader goes on after each."""
    monkeypatch.setattr(campaigns, "CORPUS", tmp_path)
    monkeypatch.setattr(campaigns, "PATIENCE", 1.0)
    monkeypatch.setattr(campaigns, "MEMORY", 2**27)
    monkeypatch.setattr(campaigns, "Random", _Numbered)
    monkeypatch.setitem(campaigns.READERS, "faulty", _faulty)
    tally = campaigns.campaign("faulty", 8, 60.0, 0)
    assert tally.outcomes == Counter({"lost": 5, "DataError": 1, "left aside": 1, "read": 1})
    told = " ".join(tally.lost)
    for words in ("more than 1 seconds", "ended by SIGKILL", "says nothing", "KeyError at", "MiB of memory"):
        assert words in told
    kept = {file.read_bytes() for file in (tmp_path / "faulty").iterdir()}
    assert kept == {b"hang", b"crash", b"words", b"other", b"memory"}
