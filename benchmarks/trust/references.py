"""What undisturbed runs of a command make, and what they take."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

from cases import Case, Known, LostError
from hooks import Writes
from launches import Running, beside
from subjects import EPOCHS, Subject, with_options


def learn(subject: Subject, scratch: Path, data: Path, *, whole: bool) -> Known:
    """Run a command undisturbed, in all the ways that are needed to tell what a disturbed one should do."""
    known = Known()
    case = Case(subject, known, random.Random(0), scratch / subject.name, data)
    case.folder.mkdir()
    notes = beside(case.folder) / "writes"
    ended = case.run(setup=(Writes(notes),))
    if ended.code != 0:
        raise LostError(f"{subject.name} undisturbed ended with {ended.code}: {ended.said}")
    known.content[0], known.seconds["forked"] = subject.content(case.folder), ended.seconds
    known.writes = len(notes.read_text().splitlines())
    known.bytes = sum(file.stat().st_blocks * 512 for file in case.folder.rglob("*"))
    if whole:
        again = dataclasses.replace(case, folder=scratch / f"{subject.name}-whole")
        again.folder.mkdir()
        known.seconds["whole"] = Running(again.line, again.folder, whole=True).wait().seconds
        known.whole = known.content if subject.command == "train" else {0: subject.content(again.folder)}
    if subject.command in ("prepare", "generate"):
        other = scratch / f"{subject.name}-other"
        other.mkdir()
        case.run(line=with_options(subject.line(other, data), subject.other))
        known.earlier, known.shared = (other, subject.content(other)), known.content
    if subject.command == "train":
        _learn_resumed(case)
        two = dataclasses.replace(case, folder=scratch / "train-shared", world_size=2)
        two.folder.mkdir()
        two.run()
        known.shared[0] = subject.content(two.folder)
        _learn_resumed(two)
    return known


def _learn_resumed(case: Case) -> None:
    """Find out what training makes that is resumed at each epoch: it draws other augmentations than one that is not."""
    for epoch in range(1, EPOCHS):
        again = dataclasses.replace(case, folder=case.folder.with_name(f"{case.folder.name}-{epoch}"))
        shutil.copytree(case.folder, again.folder)
        for later in range(epoch + 1, EPOCHS + 1):
            (again.folder / "logs" / "run" / "checkpoints" / f"epoch_{later}.pt").unlink()
        again.run()
        case.expected[epoch] = case.subject.content(again.folder)
    case.expected[EPOCHS] = case.expected[0]
