"""Progress of long work, with a clock of the test: no test waits."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from clip_negatives import progress
from clip_negatives.progress import Stage, current, line_writer, shown, stage, watch


class Clock:
    """Time that passes only by `wait`, which runs the events that are due."""

    def __init__(self, seconds: float, every_second: Callable[[], None] = lambda: None) -> None:
        self.now, self.end, self.every_second = 0.0, seconds, every_second

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        """Let time pass; return whether the work has ended."""
        before, self.now = self.now, self.now + seconds
        for _ in range(int(before), int(self.now)):
            self.every_second()
        return self.now >= self.end


def lines_of(stage: Stage, clock: Clock) -> list[tuple[float, str]]:
    """Return time and text of the lines that a display writes."""
    lines: list[tuple[float, str]] = []
    watch([stage], clock.wait, 1.0, line_writer(lambda line: lines.append((clock.now, line)), clock))
    return lines


def test_long_work_writes_a_line_with_an_estimate_at_least_every_30_seconds() -> None:
    clock = Clock(400)
    work = Stage("Encoding images", 100_000, clock=clock)
    clock.every_second = lambda: work.advance(250)
    lines = lines_of(work, clock)
    times = [0.0, *(time for time, _ in lines)]
    assert all(0 < after - before <= 30 for before, after in zip(times, [*times[1:], 400.0], strict=True))
    assert lines[0][1] == "Encoding images: 7,250 of 100,000, about 6 min left"
    assert lines[-1][1].startswith("Encoding images: 94,250 of 100,000, about 23 s left")


def test_short_work_writes_nothing() -> None:
    clock = Clock(28)
    assert lines_of(Stage("Encoding images", 10, clock=clock), clock) == []


def test_work_without_a_count_has_the_time_so_far() -> None:
    clock = Clock(100)
    assert [line for _, line in lines_of(Stage("Clustering images", clock=clock), clock)] == [
        f"Clustering images: {seconds} so far" for seconds in ("29 s", "58 s", "87 s")
    ]


def test_a_long_item_does_not_raise_the_estimate() -> None:
    clock = Clock(1000)
    work = Stage("Comparing", 3, "new runs", clock=clock)
    clock.now = 300.0
    work.advance()
    assert work.seconds_left() == 600.0
    clock.now = 500.0
    assert work.seconds_left() == 400.0
    clock.now = 2000.0
    assert work.seconds_left() == 0.0


@pytest.mark.parametrize(
    ("total", "completed", "unit", "expected"),
    [
        (None, 0, "", "2 min so far"),
        (None, 5000, "", "5,000, 2 min so far"),
        (4, 0, "shards", "0 of 4 shards, 2 min so far"),
        (4, 1, "shards", "1 of 4 shards, about 6 min left"),
        (4, 5, "shards", "5 of 5 shards, about 0 s left"),
    ],
)
def test_state(total: int | None, completed: int, unit: str, expected: str) -> None:
    clock = Clock(0)
    work = Stage("Writing", total, unit, clock=clock)
    clock.now = 120.0
    if completed:
        work.advance(completed)
    assert work.state() == expected


def test_stages_are_displayed_only_where_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[str] = []

    def display(stages: list[Stage], wait: object, seconds: float, show: object) -> None:
        displayed.append(stages[0].title)

    monkeypatch.setattr(progress, "watch", display)
    with stage("without shown"):
        pass
    with shown(), stage("shown"), stage("nested in a displayed stage"):
        pass
    with shown(False), stage("hidden"):
        pass
    with shown(), shown(False), stage("hidden by the inner block"):
        pass
    with shown(False), stage("hidden"), shown(), stage("shown by the inner block"):
        pass
    assert displayed == ["shown", "shown by the inner block"]


def test_time_without_a_line_runs_on_from_stage_to_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty stages of 20 seconds are 400 seconds of work."""
    clock, lines = Clock(0), list[tuple[float, str]]()
    monkeypatch.setattr(progress, "line_writer", lambda *_: writer)
    writer = line_writer(lambda line: lines.append((clock.now, line)), clock)
    displayed = [0.0]

    def watch_20_seconds(stages: list[Stage], wait: object, seconds: float, show: progress.Show) -> None:
        clock.end = clock.now + 20
        watch(stages, clock.wait, seconds, show)

    monkeypatch.setattr(progress, "watch", watch_20_seconds)
    with shown():
        for number in range(20):
            with stage(f"stage {number}"):
                pass
    times = [*displayed, *(time for time, _ in lines)]
    assert clock.now == 400
    assert all(after - before <= 30 for before, after in zip(times, [*times[1:], 400.0], strict=True))


def test_current_is_the_innermost_stage() -> None:
    assert current().title == ""
    with stage("outer"):
        with stage("inner"):
            assert current().title == "inner"
        assert current().title == "outer"


def test_an_error_ends_the_stages() -> None:
    with pytest.raises(ValueError, match="broken"), shown(), stage("outer"), stage("inner"):
        raise ValueError("broken")
    assert current().title == ""


def test_stderr_that_cannot_be_written_does_not_stop_the_work() -> None:
    clock = Clock(100)

    def fail(line: str) -> None:
        raise BrokenPipeError

    watch([Stage("Encoding images", clock=clock)], clock.wait, 1.0, line_writer(fail, clock))
    assert clock.now < 100  # the display ended, not the work


def test_lines_go_to_stderr_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    progress._write(f"Encoding \x1b[2J {'x' * 200}")
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == f"Encoding \\x1b[2J {'x' * 200}\n"


def test_a_bar_fits_80_columns() -> None:
    clock = Clock(0)
    work = Stage("Encoding images, process 0 of 8", 1_000_000, clock=clock)
    clock.now = 100_000.0
    work.advance(100_000)
    console = Console(width=80, record=True, force_terminal=True, file=io.StringIO())
    console.print(progress._bar(work))
    text = console.export_text()
    assert text.count("\n") == 1
    assert "Encoding images, process 0 of 8" in text
    assert "100,000 of 1,000,000, about 10 days left" in text
