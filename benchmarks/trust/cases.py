"""One disturbed run: what is known of an undisturbed one, what must hold after it ends, and what the next run must make."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hooks import Writes
from launches import Ended, Running, Setup, beside
from ranks import launched
from subjects import Content, Subject


class LostError(Exception):
    """Say what did not hold."""


@dataclass(slots=True)
class Known:
    """Hold what undisturbed runs of a command make and take.

    Attributes:
        content: what one makes; of training, by the epoch that it was resumed at.
        shared: the same of two processes.
        whole: the same of a whole process, where the parts of the data have another size.
        earlier: folder with what a run with other options made, and its content; None where an earlier one is of no use.
        seconds: that one takes, forked and as a whole process.
        writes: changes on the disk that one makes.
        bytes: that one needs on the disk.
    """

    content: dict[int, Content] = field(default_factory=dict)
    shared: dict[int, Content] = field(default_factory=dict)
    whole: dict[int, Content] = field(default_factory=dict)
    earlier: tuple[Path, Content] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    writes: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Case:
    """Hold one run that is to be disturbed.

    Attributes:
        subject: the command.
        known: what it makes undisturbed.
        chance: what is drawn comes from here.
        folder: that it may write.
        data: folder of the data.
        world_size: processes that share it from the beginning to the end.
        whole: whether it is disturbed as a whole process, not a forked one.
    """

    subject: Subject
    known: Known
    chance: random.Random
    folder: Path
    data: Path
    world_size: int = 1
    whole: bool = False

    @property
    def line(self) -> list[str]:
        """Return the command line."""
        return [*self.subject.line(self.folder, self.data), *(self.subject.ranks or () if self.world_size > 1 else ())]

    @property
    def expected(self) -> dict[int, Content]:
        """Return what it makes undisturbed, by the epoch that training was resumed at."""
        return self.known.shared if self.world_size > 1 else self.known.whole if self.whole else self.known.content

    def lay_out_earlier(self) -> None:
        """Let there be what an earlier run with other options made, in some cases."""
        if self.known.earlier is not None and self.chance.random() < 0.5:
            shutil.copytree(self.known.earlier[0], self.folder, dirs_exist_ok=True)

    def run(self, *, setup: Sequence[Setup] = (), line: Sequence[object] | None = None) -> Ended:
        """Run the command to its end."""
        if self.world_size > 1:
            ranks = launched(self.line, self.folder, setup=setup)
            ended = [rank.wait() for rank in ranks]
            return ended[0]
        return Running(line or self.line, self.folder, setup=setup, whole=self.whole).wait()

    def interrupt(self, number: int, *, line: list[str] | None = None) -> Ended:
        """Run the command and stop it by a signal, at a random moment or right before a change on the disk."""
        setup: tuple[Setup, ...] = ()
        at_a_write = not self.whole and self.chance.random() < 0.5
        if at_a_write:
            setup = (Writes(beside(self.folder) / "first", self.chance.randrange(1, self.known.writes + 1), number),)
        running = Running(line or self.line, self.folder, setup=setup, whole=self.whole)
        running.wait_until_begun()
        if not at_a_write:
            first = 0.5 if self.whole else 0.0  # Python itself begins
            running.wait_for(self.chance.uniform(first, self.known.seconds["whole" if self.whole else "forked"]))
            running.signal(number, group=number == signal.SIGINT)
        ended = running.finish()
        if running.left_behind():
            raise LostError("a process went on")
        return ended

    def epoch(self) -> int:
        """Return the epoch that training will be resumed at; 0 for other commands."""
        files = self.subject.done(self.folder) if self.subject.command == "train" else ()
        return max((int(Path(file).stem.removeprefix("epoch_")) for file in files), default=0)

    def found(self) -> Content | None:
        """Return what is there under its final name, or None."""
        try:
            return self.subject.content(self.folder)
        except FileNotFoundError:
            return None

    def check_between(self) -> None:
        """Make sure that what has its final name is whole: what was there before, or what an undisturbed run makes."""
        found = self.found()
        if found is None:
            return
        wanted = [*self.expected.values(), *([self.known.earlier[1]] if self.known.earlier else [])]
        if self.subject.command == "train":
            first = self.expected[0]
            if any(name not in first or found[name] != first[name] for name in found):
                raise LostError(f"a checkpoint is not what it should be: {sorted(found)}")
        elif found not in wanted:
            raise LostError("what has its final name is neither the earlier result nor the whole new one")

    def go_on(
        self,
        expected: Content | None = None,
        *,
        setup: Sequence[Setup] = (),
        anew: bool = False,
        others: Sequence[Path] = (),
    ) -> None:
        """Run the command again: it ends well, does nothing finished again, makes what it makes undisturbed, and tidies up.

        Args:
            expected: what it makes, where that is not what is known.
            setup: called in its process before.
            anew: what was finished before may have to be done again.
            others: folders in which interrupted runs with other results keep what they will go on with.
        """
        notes = beside(self.folder) / "again"
        notes.unlink(missing_ok=True)
        expected = expected or self.expected[self.epoch()]
        # Where the whole is there, what is left of its parts is of no use.
        done = {} if self.subject.in_parts and self.found() == expected else self.subject.done(self.folder)
        ended = self.run(setup=(Writes(notes), *setup))
        if ended.code != 0:
            raise LostError(f"the next run ended with {ended.code}: {ended.said[-600:]}")
        renamed = {note.removeprefix("os.rename ") for note in _lines(notes) if note.startswith("os.rename ")}
        again = {file for file in done if file in renamed or str(Path(file).parent) in renamed}
        again |= {file for file, changed in self.subject.done(self.folder).items() if done.get(file, changed) != changed}
        if again and not anew:
            raise LostError(f"finished work was done again: {sorted(again)[:3]}")
        if self.subject.content(self.folder) != expected:
            raise LostError("the result is another than that of an undisturbed run")
        left = [file for file in self.folder.rglob("*") if ".partial" in file.name or file.name.startswith(".")]
        left = [file for file in left if not any(file.is_relative_to(other) for other in others)]
        if left:
            raise LostError(f"left behind: {sorted(str(file.relative_to(self.folder)) for file in left)[:5]}")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def check_error(ended: Ended, *words: str) -> None:
    """Make sure that a command ended with exit code 2 and one sentence that has these words."""
    if ended.code != 2 or "Traceback" in ended.said or not re.search(r"^Error: .*Expected .*got", ended.said, re.M | re.S):
        raise LostError(f"ended with {ended.code}, and said: {ended.said[-900:]}")
    if missing := [word for word in words if word not in ended.said]:
        raise LostError(f"said nothing of {missing}: {ended.said[-600:]}")


def check_stopped(ended: Ended, number: int) -> None:
    """Make sure that a command ended as one does that is stopped by a signal, or before it came."""
    allowed = {0, -number, 128 + number} - ({-number} if number == signal.SIGINT else set())
    if ended.code not in allowed or "Traceback" in ended.said:
        raise LostError(f"ended with {ended.code}, and said: {ended.said[-900:]}")
