"""Progress of long work on stderr: a bar on a terminal, and lines elsewhere, such as in the log of a job.

Short work prints no line. Long work prints a line about every `SECONDS_BETWEEN_LINES` seconds:

    Encoding images: 4,096 of 100,000, about 3 min left

`shown` turns the display on for a block, and a `stage` in the block is displayed. Elsewhere, `stage` displays nothing. A
function that runs in the stage of its caller, such as the ``fit`` of a clusterer, reports to `current`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from threading import Event, Thread
from typing import TYPE_CHECKING

from clip_negatives.printing import printable

if TYPE_CHECKING:
    from rich.table import Table

SECONDS_BETWEEN_LINES = 30.0
BAR_WIDTH = 24  # characters; less if the line would not fit the terminal
SECONDS_BETWEEN_LOOKS = {"bar": 0.2, "lines": 1.0}  # the display looks at the running stage this often

Clock = Callable[[], float]
Show = Callable[["Stage"], None]


class Stage:
    """A stage of long work: how much is done, and an estimate of the time left.

    Attributes:
        title: what is done, such as "Encoding images".
        total: number of items; None if unknown.
        unit: what is counted, such as "shards"; "" if the title says it.
        completed: number of finished items.

    Examples:
        >>> stage = Stage("Writing shards", total=4, unit="shards", clock=iter([0.0, 60.0, 75.0]).__next__)
        >>> stage.advance()
        >>> stage.line()
        'Writing shards: 1 of 4 shards, about 3 min left'
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "", *, clock: Clock = time.monotonic) -> None:
        self.title, self.total, self.unit, self.completed = title, total, unit, 0
        self._clock = clock
        self._started = self._last = clock()

    def advance(self, count: int = 1) -> None:
        """Count finished items."""
        self.completed += count
        self._last = self._clock()

    def seconds_left(self) -> float | None:
        """Return the estimate of the time left, at the mean rate so far; None without a total or a finished item."""
        if not self.total or not self.completed:
            return None
        seconds_per_item = (self._last - self._started) / self.completed
        return max(0.0, (self.total - self.completed) * seconds_per_item - (self._clock() - self._last))

    def state(self) -> str:
        """Return the finished items and the time left, or the time so far if the time left is unknown."""
        counts = []
        if self.total:
            counts = [f"{self.completed:,} of {max(self.total, self.completed):,}"]
        elif self.completed:
            counts = [f"{self.completed:,}"]
        if counts and self.unit:
            counts = [f"{counts[0]} {self.unit}"]
        left = self.seconds_left()
        times = f"{duration(self._clock() - self._started)} so far" if left is None else f"about {duration(left)} left"
        return ", ".join([*counts, times])

    def line(self) -> str:
        """Return the line of progress."""
        return f"{self.title}: {self.state()}"


def duration(seconds: float) -> str:
    """Return a time in words.

    Examples:
        >>> duration(40), duration(200), duration(8000), duration(900_000)
        ('40 s', '3 min', '2 h 13 min', '10 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} days"


@contextmanager
def shown(is_on: bool = True) -> Iterator[None]:
    """Display the stages in the block, or none of them; the innermost `shown` decides."""
    before = _lines.get()
    lines = (before or line_writer(_write, time.monotonic)) if is_on else None
    tokens = _lines.set(lines), _stages.set(_stages.get() if lines is before else None)
    try:
        yield
    finally:
        _lines.reset(tokens[0])
        _stages.reset(tokens[1])


@contextmanager
def stage(title: str, total: int | None = None, unit: str = "") -> Iterator[Stage]:
    """Begin a stage of work, see `Stage`; it ends with the block. A nested stage is shown in place of the outer one."""
    running, stages, lines = Stage(title, total, unit), _stages.get(), _lines.get()
    if stages is not None:
        stages.append(running)
        try:
            yield running
        finally:
            stages.pop()
        return
    token = _stages.set([running])
    try:
        with nullcontext() if lines is None else _displayed(_stages.get() or [], lines):
            yield running
    finally:
        _stages.reset(token)


def current() -> Stage:
    """Return the running stage; without one, a stage that is not displayed."""
    stages = _stages.get()
    return stages[-1] if stages else Stage("")


def watch(stages: Sequence[Stage], wait: Callable[[float], bool], seconds: float, show: Show) -> None:
    """Show the innermost of the running stages every `seconds`, until `wait` returns that the work has ended."""
    with suppress(OSError):  # stderr cannot be written: the work matters more than its progress
        while not wait(seconds):
            show(stages[-1])


def line_writer(write: Callable[[str], None], clock: Clock) -> Show:
    """Return a function that writes the line of a stage, at most every `SECONDS_BETWEEN_LINES`; the first ones are silent."""
    last = clock()

    def show(stage: Stage) -> None:
        nonlocal last
        if clock() - last >= SECONDS_BETWEEN_LINES - SECONDS_BETWEEN_LOOKS["lines"]:
            last = clock()
            write(stage.line())

    return show


@contextmanager
def _displayed(stages: Sequence[Stage], lines: Show) -> Iterator[None]:
    """Show the stages from a thread while the block runs."""
    from rich.console import Console  # with the next ones, takes a tenth of a second
    from rich.live import Live

    console, ended = Console(stderr=True), Event()
    live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def bar(stage: Stage) -> None:
        if live is not None:
            live.update(_bar(stage), refresh=True)

    seconds = SECONDS_BETWEEN_LOOKS["bar" if live else "lines"]
    thread = Thread(target=watch, args=(stages, ended.wait, seconds, bar if live else lines), daemon=True)
    with live or nullcontext():
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _bar(stage: Stage) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(max_width=BAR_WIDTH)
    row.add_column(no_wrap=True)
    row.add_row(Text(printable(stage.title)), ProgressBar(stage.total, stage.completed), Text(stage.state()))
    return row


def _write(line: str) -> None:
    """Write a line to stderr."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(printable(line)), soft_wrap=True)


_lines: ContextVar[Show | None] = ContextVar("_lines", default=None)  # None: stages are not displayed
_stages: ContextVar[list[Stage] | None] = ContextVar("_stages", default=None)  # the running stages, the innermost last
