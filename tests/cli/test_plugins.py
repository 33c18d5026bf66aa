"""The list of plugins, and the page of one plugin."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_negatives.cli import main
from clip_negatives.cli.docstrings import summary, wrapped
from clip_negatives.host import registry

ITEMS = registry.default_registry().items()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def listed(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and summary of each plugin of a list."""
    for name, lines in re.findall(r"^  (\S+) +(\S.*\n(?: {5,}.*\n)*)", text, re.MULTILINE):
        yield name, " ".join(lines.split())


def test_list_has_a_summary_for_each_plugin() -> None:
    shown = run("plugins").stdout
    assert [*listed(shown)] == [(item.name, summary(item.docstring)) for item in ITEMS]
    assert [line for line in shown.splitlines() if line[0] != " "] == ["clusterers", "negative samplers", "loss weightings"]
    assert "clip-negatives 0" not in shown


@pytest.mark.parametrize("arguments", [[], *(["show", item.name] for item in ITEMS)], ids=" ".join)
def test_lines_fit_80_columns(arguments: list[str]) -> None:
    lines = run("plugins", *arguments).stdout.splitlines()
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []


def test_other_distributions_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = dataclasses.replace(ITEMS[0], name="theirs", distribution="their-plugins", version="1.2")
    silent = dataclasses.replace(theirs, name="silent", factory=lambda: None)
    monkeypatch.setattr(registry.Registry, "items", lambda *_: [*ITEMS[:1], theirs, silent])
    shown = dict(listed(run("plugins").stdout))
    assert shown["theirs"].endswith(". (their-plugins 1.2)")
    assert shown["silent"] == "(their-plugins 1.2)"


def test_list_without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.Registry, "items", lambda *_: [])
    assert run("plugins").stdout == ""


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_show_prints_the_whole_docstring_and_all_options(item: registry.Registration) -> None:
    shown = run("plugins", "show", item.name).stdout
    assert shown.startswith(f"{item.kind.replace('_', ' ')} {item.name}\nplugin {item.plugin} of clip-negatives ")
    assert " ".join(item.docstring.replace("`", "").split()) in " ".join(shown.split())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert [name for name, *_ in rows] == [option.name for option in item.options]


def test_table_of_options() -> None:
    shown = run("plugins", "show", "blend").stdout
    assert re.search(r"│ by +│ both \| image \| text +│ both +│", shown)
    assert re.search(r"│ rank +│ int \| none +│ none +│", shown)
    assert re.search(r"│ learned_temperature +│ bool +│ false +│\n", shown)
    assert "│ value │" not in shown
    assert re.search(r"│ mass +│ float +│ 0.2 +│ 0.3 +│\n", run("plugins", "show", "blend:mass=0.3").stdout)


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "plugins.json"
    assert run("plugins", "--json", file).exit_code == 0
    assert [entry["name"] for entry in json.loads(file.read_text())["plugins"]] == [item.name for item in ITEMS]
    shown = run("plugins", "show", "blend:by=text", "--json", "-")
    (entry,) = json.loads(shown.stdout)["plugins"]
    assert shown.stderr.startswith("loss weighting blend\n")
    assert (entry["kind"], entry["plugin"], entry["distribution"]) == ("loss_weighting", "soft-targets", "clip-negatives")
    (option,) = [option for option in entry["options"] if option["name"] == "by"]
    choices = ["both", "image", "text"]
    assert option == {
        "name": "by", "type": "str", "choices": choices, "optional": False, "default": "both", "value": "text"
    }  # fmt: skip


def test_a_file_that_is_not_ours_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text("{}")
    for arguments in (["plugins"], ["plugins", "show", "kmeans"]):
        shown = run(*arguments, "--json", file)
        assert (shown.exit_code, shown.stdout, file.read_text()) == (2, "", "{}")


def test_both_plugins_of_one_name_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    get = registry.Registry.get
    both = [dataclasses.replace(ITEMS[0], kind=kind, name="kmeans") for kind in ("clusterer", "loss_weighting")]
    monkeypatch.setattr(registry.Registry, "items", lambda *_: both)
    monkeypatch.setattr(registry.Registry, "get", lambda self, _, name: get(self, "clusterer", name))
    assert len(json.loads(run("plugins", "show", "kmeans", "--json", "-").stdout)["plugins"]) == 2
    shown = run("plugins", "show", "kmeans", "--kind", "clusterer", "--json", "-")
    assert len(json.loads(shown.stdout)["plugins"]) == 1


def test_docstrings_of_factories() -> None:
    class Documented:
        """A base class."""

    class Plain(Documented): ...

    @dataclasses.dataclass
    class WithOptions:
        option: int = 5

    def function() -> None:
        """Return nothing."""

    def docstring(factory: object) -> str:
        return dataclasses.replace(ITEMS[0], factory=factory).docstring

    assert [docstring(factory) for factory in (Documented, Plain, WithOptions, function, functools.partial(function))] == [
        "A base class.", "", "", "Return nothing.", "Return nothing."
    ]  # fmt: skip


def test_wrapped_docstring() -> None:
    docstring = """A summary
on two lines.

* Source: a paper
  of several authors.
* Sign: none.

Args:
    first: the first
        argument, ``0 .. 1``.
    second: the second argument.

Examples:
    >>> 1 + 1
    2
"""
    assert [*wrapped(docstring, 24)] == [
        "A summary on two lines.",
        "",
        "* Source: a paper of",
        "  several authors.",
        "* Sign: none.",
        "",
        "Args:",
        "    first: the first",
        "        argument, 0 ..",
        "        1.",
        "    second: the second",
        "        argument.",
        "",
        "Examples:",
        "    >>> 1 + 1",
        "    2",
    ]
