"""One of several independent tasks that share work without a process group, such as a task of a Slurm array."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from clip_negatives.advice import argument
from clip_negatives.errors import InputError

T = TypeVar("T")

TORCHRUN = "RANK"  # variable of torchrun
SLURM = "SLURM_ARRAY_TASK_"  # first part of the variables of a Slurm array
SLURM_DEFAULTS = {"ID": "", "COUNT": "", "MIN": "0", "STEP": "1"}


@dataclass(frozen=True, slots=True)
class Task:
    """Task `number` (from 1) of `count` tasks.

    Attributes:
        origin: where the numbers come from, for the user; "" if the user gave them.
    """

    number: int = 1
    count: int = 1
    origin: str = ""

    @classmethod
    def parse(cls, text: str) -> Task:
        """Return the task of a text such as ``3/100``; InputError for another text.

        >>> Task.parse("3/100")
        Task(number=3, count=100, origin='')
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            form = "NUMBER/COUNT with NUMBER from 1 to COUNT, such as 3/100"
            raise InputError(f"{argument('task')} must be {form}, got {text!r}.")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Task:
        """Return the task of a Slurm array or a process of torchrun, else the only task; InputError for invalid variables."""
        texts = [variables.get(f"{SLURM}{name}", default) for name, default in SLURM_DEFAULTS.items()]
        is_array = f"{SLURM}ID" in variables
        if not is_array:
            texts = [variables.get(TORCHRUN, "0"), variables.get("WORLD_SIZE", "1"), "0", "1"]
        origin = f"{SLURM}ID" if is_array else TORCHRUN
        try:
            identifier, count, least, step = map(int, texts)
            number = (identifier - least) // step + 1
        except (ValueError, ZeroDivisionError):
            number, count = 0, 0
        if not 1 <= number <= count:
            fault = f"The value of {origin} and the count beside it are no number of a task and a number of tasks"
            raise InputError(f"{fault}. Use {argument('task')}, such as 3/100.")
        return cls(number, count, origin if is_array or count > 1 else "")

    @property
    def is_of_torchrun(self) -> bool:
        """Return whether torchrun started this task, together with the others."""
        return self.origin == TORCHRUN

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.number}/{self.count}"

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `count`-th item, beginning with this task's number."""
        return items[self.number - 1 :: self.count]

    def others(self, items: Sequence[T]) -> list[T]:
        """Return the items of other tasks, from the end and from a place of this task on, so that tasks rarely meet.

        >>> Task(2, 3).others([0, 1, 2, 3, 4, 5])
        [0, 5, 3, 2]
        """
        rest = [item for place, item in enumerate(items) if place % self.count != self.number - 1]
        start = len(rest) * (self.number - 1) // self.count
        return [*rest[start:], *rest[:start]][::-1]
