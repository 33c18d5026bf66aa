"""The command line as a user meets it: help, lists, and one sentence with exit code 2 for whatever is wrong."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from rich.table import Table
from rich.text import Text

from clip_negatives.cli import COMMANDS, KEPT, main
from clip_negatives.cli.output import console
from clip_negatives.host import registry
from clip_negatives.host.options import options_of
from clip_negatives.testing import CHECKS, ConformanceError, Subject


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


def test_plugins_check_shows_a_table() -> None:
    shown = run("plugins", "check", "kmeans:n_clusters=5")
    assert shown.exit_code == 0
    assert "clusterer kmeans:n_clusters=5" in shown.output
    assert shown.output.count("passed") == len(CHECKS["clusterer"])


def test_plugins_check_fails_where_a_check_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_two(subject: Subject) -> None:
        """It is never 2."""
        raise ConformanceError("Expected 1, got 2.")

    monkeypatch.setitem(CHECKS, "loss_weighting", (never_two,))
    shown = run("plugins", "check", "uniform")
    assert shown.exit_code == 1
    assert "failed: Expected 1, got 2." in shown.output


def test_plugins_new_writes_a_folder(tmp_path: Path) -> None:
    shown = run("plugins", "new", "my-sampler")
    assert shown.exit_code == 0
    assert (tmp_path / "my-sampler" / "my_sampler" / "__init__.py").is_file()
    assert run("plugins", "new", "my-sampler").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "absent.csv", "out"], "absent.csv does not exist"),
        (["prepare", "absent.txt", "out"], "does not end in .csv"),
        (["meter", "absent"], "clip-negatives prepare"),
        (["generate", "absent"], "clip-negatives prepare"),
        (["inspect", "absent"], "clip-negatives prepare"),
        (["train", "--", "--model", "clip-negatives-tiny"], "--train-data"),
        (["train", "--sampler", "in_bach", "--"], "Did you mean 'in_batch'"),
        (["compare", "--methods", "papr"], "Did you mean 'paper'"),
        (["compare", "--seeds", "0"], "at least 1 seed"),
        (["catalogue", "export", "out", "--split", "tset"], "Expected a split"),
        (["plugins", "check", "in_bach"], "Did you mean 'in_batch'"),
        (["plugins", "show", "in_bach"], "Did you mean 'in_batch'"),
        (["plugins", "show", "in_batch", "--kind", "clusterer"], "Unknown clusterer"),
        (["plugins", "show", "kmeans:precision=half"], "Expected float32, tf32 or bfloat16 for option 'precision' of 'kmeans'"),
        (["plugins", "show", "blend:mass=2"], "mass must be at least 0 and at most 1, got 2.0."),
        (["plugins", "--json", "out.json", "show", "kmeans"], "Write --json after the command show"),
        (["plugins", "check", "kmeans", "--kind", "loss-weighting"], "Unknown loss weighting"),
        (["plugins", "check", "kmeans:n_cluster=3"], "n_clusters"),
        (["plugins", "new", "In Batch"], "such as my-sampler"),
        (["plugins", "new", "in-batch"], "Choose another"),
        (["plugins", "new", "mine", "--kind", "sampler"], "'negative-sampler'"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["zzz"], "No such command 'zzz'. Help: "),
        (["plugins", "chek"], "No such command 'chek'. Did you mean 'check'?"),
        (["catalogue", "exprot"], "No such command 'exprot'. Did you mean 'export'?"),
        (["meter"], "Missing argument"),
        (["compare", "--seeds", "x"], "not a valid integer"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    shown = run(*arguments)
    assert shown.exit_code == 2
    assert words in shown.stderr
    assert "Traceback" not in shown.output
    assert shown.stderr.startswith("Error: ")
    assert len(shown.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_errors_that_are_not_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(registry, "default_registry", fail)
    shown = run("plugins")
    assert isinstance(shown.exception, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "where", "words"),
    [
        (["plugins"], "clip_negatives.host.registry.default_registry", "Stopped."),
        (["catalogue", "export", "out"], "clip_negatives.catalogue.export", "Nothing was written. Run the same command again."),
        (["meter", "clusters"], "clip_negatives.cli.early.check_clusters_or_data", "Encoded data are kept."),
        (["prepare", "train.csv", "out"], "clip_negatives.cli.early.check_data", "Run the same command again to continue."),
        (["labels", "clusters", "out"], "clip_negatives.cli.early.check_clusters", "Nothing was written."),
        (["generate", "clusters"], "clip_negatives.cli.early.check_clusters", "Finished parts are kept."),
        (["train"], "clip_negatives.integrations.open_clip.train", "--name RUN --resume latest"),
    ],
)
def test_ctrl_c_says_what_is_kept_in_one_line(
    arguments: list[str], where: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    shown = run(*arguments)
    assert shown.exit_code == 130
    assert shown.stderr.startswith("Stopped.")
    assert words in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_every_command_that_writes_says_what_ctrl_c_keeps() -> None:
    assert set(COMMANDS) - set(KEPT) == {"compare", "completion", "plugins"}  # compare says it itself


def test_a_usage_error_names_the_command_that_prints_the_help() -> None:
    assert run("meter").stderr == "Error: Missing argument 'CLUSTERS_OR_DATA'. Help: main meter --help\n"
    assert run("trian").stderr == "Error: No such command 'trian'. Did you mean 'train'? Help: main --help\n"
    assert run("plugins", "new").stderr == "Error: Missing argument 'NAME'. Help: main plugins new --help\n"


def every_command(group: click.Group = main, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from every_command(command, *path, name)


@pytest.mark.parametrize(("path", "command"), list(every_command()), ids=lambda value: str(value))
def test_help_has_examples_that_can_be_called(path: tuple[str, ...], command: click.Command) -> None:
    """Parsed and not run: the options are there, and their values of the type."""
    shown = run(*path, "--help").output.replace("\\\n", "")
    lines = [line.strip() for line in shown.split("Examples:\n")[1].split("\n\n")[0].splitlines() if line.startswith("    ")]
    assert lines
    for line in lines:
        words = shlex.split(line)
        start = words.index("clip-negatives" if "clip-negatives" in words else "clip_negatives") + 1
        found: click.Command = main
        with click.Context(main) as context:
            while isinstance(found, click.Group) and start < len(words):
                found, start = found.get_command(context, words[start]), start + 1
            found.make_context("example", words[start:], resilient_parsing=False) if not isinstance(
                found, click.Group
            ) else None


def completed(*words: str) -> list[str]:
    complete = ShellComplete(main, {}, "clip-negatives", "_CLIP_NEGATIVES_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_a_shell_completes_names_of_plugins_and_their_options() -> None:
    assert completed("tra") == ["train"]
    assert completed("train", "--sampler", "cluster_s") == ["cluster_similarity", "cluster_stratified"]
    assert completed("train", "--weighting", "cluster_s") == []
    assert completed("prepare", "--clusterer", "kmeans:n_") == ["kmeans:n_clusters=", "kmeans:n_iter=", "kmeans:n_redo="]
    assert completed("prepare", "--clusterer", "kmeans:n_iter=3,se") == ["kmeans:n_iter=3,seed="]
    assert completed("compare", "--methods", "in_batch,def") == ["in_batch,default"]
    assert completed("compare", "--methods", "in_batch+gate") == ["in_batch+gate", "in_batch+gate2"]
    assert completed("plugins", "check", "weighted") == ["weighted_infonce"]
    assert completed("plugins", "sh") == ["show"]
    assert completed("plugins", "show", "weighted") == ["weighted_infonce"]


HOSTILE = "a\x1b[2J\x1b]0;x\x07\u202eb\r\nError forged \udcff"
ESCAPED = "a\\x1b[2J\\x1b]0;x\\x07\\u202eb\\r\\nError forged \\udcff"


@pytest.mark.parametrize(
    ("arguments", "code", "stream"),
    [
        (["generate", HOSTILE, "-o", "pairs.parquet"], 2, "stderr"),
        (["prepare", f"--{HOSTILE}"], 2, "stderr"),
        ([f"--{HOSTILE}"], 2, "stderr"),
        ([HOSTILE], 2, "stderr"),
        (["plugins", "new", "mine", "--kind", HOSTILE], 2, "stderr"),
        (["plugins", "new", "mine", "--output", HOSTILE], 0, "stdout"),
        (["catalogue", "export", HOSTILE[:-2], "--split", "test", "--format", "csv"], 0, "stdout"),
        (["plugins"], 0, "stdout"),
        (["plugins", "show", "kmeans"], 0, "stdout"),
    ],
)
def test_what_is_printed_neither_drives_the_terminal_nor_forges_a_line(
    arguments: list[str], code: int, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name could clear the screen, write the title of the window, hide text, or print a line that seems to be ours."""
    if arguments == ["plugins"]:
        item = registry.default_registry().items()[0]
        hostile = dataclasses.replace(item, name=HOSTILE, plugin=HOSTILE, distribution=HOSTILE, version=HOSTILE)
        monkeypatch.setattr(registry.Registry, "items", lambda *_: [hostile])
    if arguments == ["plugins", "show", "kmeans"]:

        def factory(option: str = HOSTILE) -> None: ...

        factory.__doc__ = f"{HOSTILE}\n\n{HOSTILE}"
        item = registry.default_registry().get("clusterer", "kmeans")
        hostile = dataclasses.replace(item, factory=factory, options=options_of(factory), version=HOSTILE)
        monkeypatch.setattr(registry.Registry, "get", lambda *_: hostile)
    shown = run(*arguments)
    assert shown.exit_code == code, shown.output
    text = getattr(shown, stream)
    assert not {"\x1b", "\x07", "\r", "\u202e", "\udcff"} & set(text)
    assert "a\\x1b[2J" in text
    assert not any(line.startswith("Error forged") for line in text.splitlines())


def test_tables_escape_names_and_take_none_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_column(Text("two\nlines"))
    table.add_row(HOSTILE, "[bold]雪[/bold] :smile: [link=file:///etc]x[/link]")
    console(width=160).print(table)
    shown = capsys.readouterr().out
    assert "".join(shown.split()).count("".join(ESCAPED.split())) == 4
    assert "[bold]雪[/bold] :smile: [link=file:///etc]x[/link]" in shown
    assert "\x1b" not in shown
