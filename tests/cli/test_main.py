"""The command line as a user meets it: help, lists, and one sentence with exit code 2 for whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_negatives import registry
from clip_negatives.cli import COMMANDS, main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIP_NEGATIVES_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    shown = run(command, "--help")
    assert shown.exit_code == 0
    assert shown.output.startswith("Usage:")


def test_plugins_lists_everything() -> None:
    shown = run("plugins").output
    for item in registry.default_registry().items():
        assert f"{item.name}  (plugin {item.plugin} of {item.distribution} {item.version})" in shown
        for option in item.options:
            assert str(option) in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "absent.csv", "out"], "absent.csv, which is not there"),
        (["prepare", "absent.txt", "out"], "end in .csv, .tsv or .tar"),
        (["meter", "absent"], "clip-negatives prepare"),
        (["generate", "absent"], "clip-negatives prepare"),
        (["inspect", "absent"], "clip-negatives prepare"),
        (["train", "--", "--model", "clip-negatives-tiny"], "--train-data"),
        (["train", "--sampler", "in_bach", "--"], "Did you mean 'in_batch'"),
        (["compare", "--methods", "papr"], "Did you mean 'paper'"),
        (["compare", "--seeds", "0"], "at least 1 seed"),
        (["catalogue", "export", "out", "--split", "tset"], "Expected a split"),
        (["trian"], "No such command"),
        (["meter"], "Missing argument"),
        (["compare", "--seeds", "x"], "not a valid integer"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    shown = run(*arguments)
    assert shown.exit_code == 2
    assert words in shown.stderr
    assert "Traceback" not in shown.output
    if shown.stderr.startswith("Error: "):
        assert len(shown.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_errors_that_are_not_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(registry, "default_registry", fail)
    shown = run("plugins")
    assert isinstance(shown.exception, RuntimeError)
