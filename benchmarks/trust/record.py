"""Result files of the campaigns of this folder: what was tried, what survived it, what was lost."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run import machine

import clip_negatives
from clip_negatives.atomic import replaced_file

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Row:
    """Say how one class of inputs or faults ended.

    Attributes:
        subject: what was exposed to it: a reader, or a command.
        what: the class of inputs or faults, in a few words.
        tried: how many.
        survived: how many ended as promised.
        lost: how many did not: another error than a documented one, a hang, a half-written file, finished work gone.
        outcome: what is promised, and so what the survivors did, in a few words.
    """

    subject: str
    what: str
    tried: int
    survived: int
    lost: int
    outcome: str


def target(campaign: str, *, small: bool) -> Path:
    """Return where `write` puts the result of a campaign on this machine."""
    return (ROOT / ".benchmarks" if small else ROOT / "benchmarks" / "results") / machine() / f"trust-{campaign}.json"


def read(campaign: str, *, small: bool) -> dict[str, Any]:
    """Return what `write` wrote of a campaign on this machine, nothing where it did not yet."""
    file = target(campaign, small=small)
    return json.loads(file.read_text()) if file.exists() else {}


def write(campaign: str, rows: Iterable[Row], *, command: str, seconds: float, small: bool, **figures: Any) -> Path:
    """Write ``trust-<campaign>.json`` beside the other results of this machine; of a small run under ``.benchmarks``.

    Args:
        campaign: name of the campaign, as `survival.py` knows it.
        rows: how each class of inputs or faults ended.
        command: what runs the campaign again.
        seconds: how long it ran.
        small: whether this was the small size, which proves that the campaign runs and nothing more.
        figures: what else was measured, as JSON takes it.
    """
    file = target(campaign, small=small)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "command": command,
        "version": clip_negatives.__version__,
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
        **figures,
        "rows": [asdict(row) for row in rows],
    }
    with replaced_file(file) as partial:
        partial.write_text(json.dumps(whole, indent=1) + "\n")
    return file
