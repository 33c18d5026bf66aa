"""What `compare` prints: settings first, then the verdict, then the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from clip_negatives.cli import main
from tests.compare.test_quick_result import stored


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the runs by a stored result, and return the arguments of the comparison."""
    monkeypatch.chdir(tmp_path)
    arguments: list[dict[str, Any]] = []

    def compare(output: Path, **options: Any) -> Any:
        arguments.append(options)
        return stored()

    monkeypatch.setattr("clip_negatives.compare.compare", compare)
    monkeypatch.setattr("clip_negatives.compare.output.plot", lambda *_: None)
    monkeypatch.setattr("clip_negatives.report.write_comparison", lambda *_: tmp_path / "report.html")
    monkeypatch.setattr("clip_negatives.report.write_comparison_card", lambda *_: None)
    return arguments


def test_settings_come_first_and_the_verdict_before_the_table(calls: list[dict[str, Any]]) -> None:
    shown = CliRunner().invoke(main, ["compare", "--quick"], catch_exceptions=False).stdout
    places = [shown.index(words) for words in ("--lr", "No method is significantly better", "Text to image")]
    assert places == sorted(places)
    assert max(map(len, shown.splitlines()[:-1])) <= 80


def test_json_on_stdout_is_alone(calls: list[dict[str, Any]]) -> None:
    shown = CliRunner().invoke(main, ["compare", "--quick", "--json", "-"], catch_exceptions=False)
    assert json.loads(shown.stdout)["verdict"] == stored().verdict
    assert "Text to image" in shown.stderr


def test_temperatures_are_a_list(calls: list[dict[str, Any]]) -> None:
    CliRunner().invoke(main, ["compare", "--temperatures", "0.05,0.1", "--tune-lr"], catch_exceptions=False)
    assert (calls[0]["temperatures"], calls[0]["tune_lr"]) == ([0.05, 0.1], True)
    wrong = CliRunner().invoke(main, ["compare", "--temperatures", "low"])
    assert (wrong.exit_code, "such as 0.05,0.1" in wrong.stderr) == (2, True)
