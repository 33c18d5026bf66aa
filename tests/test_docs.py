"""The docs name what there is."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
from collections import Counter
from pathlib import Path

import click
import pytest

from clip_negatives import catalogue
from clip_negatives.cli import COMMANDS, main
from clip_negatives.dataset.columns import COMMON
from clip_negatives.dataset.kinds import KINDS
from clip_negatives.host import hookspecs, registry
from clip_negatives.interfaces import ExtraImageSampler, ExtraTextSampler, ObservingSampler, OwnTextSampler, PairsForImages
from clip_negatives.storage.source_files import DIGESTED_FILES
from clip_negatives.testing import CHECKS
from clip_negatives.training.same_data import CHECKED_FILES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def commands(page: Path) -> list[list[str]]:
    """Return every call of clip-negatives in the code of a page, split into words."""
    text = page.read_text()
    code = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    inline = "\n".join(found for found in re.findall(r"`([^`\n]+)`", text) if re.match(r"clip-negatives [a-z]", found))
    return [shlex.split(match) for match in re.findall(r"clip-negatives ((?:compare|[a-z])[^\n&|]*)", f"{code}\n{inline}")]


def test_page_of_data_has_all_formats_and_names_of_columns() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*KINDS]
    for role, label in (("image", "image"), ("text", "caption")):
        listed = re.search(rf"^\* {label}: (.*?)[;.]$", text, re.MULTILINE | re.DOTALL)
        assert listed is not None
        assert tuple(re.findall(r"`(\w+)`", listed[1])) == COMMON[role]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        command: click.Command | None = main
        with click.Context(main) as context:
            while isinstance(command, click.Group):
                command = command.get_command(context, words.pop(0)) if words else None
                if command is not None and not isinstance(command, click.Group):
                    break
                if not words:
                    break
        assert command is not None, words
        ours = words[: words.index("--")] if "--" in words else words
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        given = {word.partition("=")[0] for word in ours if word.startswith("-")}
        assert given <= known, (page.name, command.name, given - known)


def test_numbers_of_compared_files() -> None:
    page = (ROOT / "docs" / "train.md").read_text()
    assert f"of at most {CHECKED_FILES:,} evenly spread images" in page
    assert f"content of at most {DIGESTED_FILES} evenly spread images" in page


def test_threat_model_names_modules_that_exist() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| ") and row.count("|") == 5]
    modules = {name for row in rows for name in re.findall(r"`([a-z_.]+)`", row.split("|")[4])}
    assert len(modules) > 15
    assert [name for name in sorted(modules) if importlib.util.find_spec(f"clip_negatives.{name}") is None] == []


def test_pages_have_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 15


def test_every_hook_is_documented_with_its_signature() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text()
    hooks = [function for name, function in vars(hookspecs).items() if name.startswith("clip_negatives_")]
    assert len(hooks) == 3
    for function in hooks:
        signature = str(inspect.signature(function)).replace("'", "")
        assert f"def {function.__name__}{signature}" in page
        assert inspect.getdoc(function) in page


@pytest.mark.parametrize("kind", [PairsForImages, ExtraTextSampler, ExtraImageSampler, OwnTextSampler, ObservingSampler])
def test_optional_methods_of_a_sampler_are_documented_with_their_signature(kind: type) -> None:
    page = (ROOT / "docs" / "hooks.md").read_text()
    methods = [function for name, function in vars(kind).items() if inspect.isfunction(function) and name[0] != "_"]
    for function in methods:
        signature = str(inspect.signature(function)).replace("'", "")
        assert f"def {function.__name__}{signature}\n" in page
        assert inspect.getdoc(function) in page
    for name, annotation in kind.__annotations__.items():
        assert f"{name}: {annotation}\n" in page


def test_every_check_of_the_kit_is_documented_with_its_sentence() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    rows = [f"| `{check.__name__}` | {' '.join(inspect.getdoc(check).split())} |" for kind in CHECKS.values() for check in kind]
    assert [row for row in rows if row not in page] == []
    assert page.count("\n| `") == len(rows)


def test_included_files_are_there() -> None:
    marks = [line for page in PAGES for line in page.read_text().splitlines() if re.match(r"-+\s*8", line)]
    assert len(marks) == 13
    for mark in marks:
        included = re.fullmatch(r'--8<-- "(.+)"', mark)
        assert included is not None, mark
        assert (ROOT / included.group(1)).is_file(), mark


def test_pictures_are_there() -> None:
    """The build checks links and anchors, but not pictures."""
    pictures = [(page, name) for page in PAGES for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", page.read_text())]
    assert len(pictures) > 5
    assert [(page.name, name) for page, name in pictures if not (page.parent / name).is_file()] == []


def test_index_of_the_api_lists_every_entry() -> None:
    docs = ROOT / "docs"
    names = {page.name: re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE) for page in (docs / "api").iterdir()}
    entries = {f"api/{page}#{name}" for page in names for name in names[page]}
    assert set(re.findall(r"\((api/\w+\.md#\S+)\)", (docs / "api.md").read_text())) == entries


def test_every_command_is_listed_with_its_functions() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == sorted(set(COMMANDS) - {"completion"})
    for _, functions in rows:
        for path in re.findall(r"`([\w.]+)`", functions):
            module, _, name = path.rpartition(".")
            assert callable(getattr(importlib.import_module(f"clip_negatives.{module}"), name)), path


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    assert listed <= pages
    # The tables of rivals.md and study.md link to these.
    assert all(page.startswith(("methods/", "study/")) for page in pages - listed)


def test_every_dependency_is_justified() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"\ndependencies = \[\n(.*?)\n\]", pyproject, re.DOTALL)
    assert listed is not None
    names = re.findall(r'"([\w-]+)', listed.group(1))
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(names) > 10
    assert [name for name in names if f"| {name} |" not in page] == []


def test_figures_of_the_catalogue() -> None:
    page = (ROOT / "docs" / "catalogue.md").read_text()
    for split in ("train", "test", "unseen"):
        part = catalogue.load(split)
        assert f"| {split} | {len(part)} | {len(set(part.column('item')))} |" in page
    train, test = catalogue.load("train"), catalogue.load("test")
    counts, n = Counter(train.column("item")), len(train)
    others = sum(count * (count - 1) for count in counts.values()) / n
    assert f"for a training listing | {others:.2f} |" in page
    assert f"for each sample | {others / (n - 1) * 255:.2f} |" in page
    assert f"training has too | {len(set(train.column('text')) & set(test.column('text')))} |" in page


def test_the_page_of_benchmarks_is_that_of_the_results() -> None:
    import report

    assert (ROOT / "docs" / "benchmarks.md").read_text() == report.page(), "Write it anew: python benchmarks/report.py"


def test_the_page_of_rates_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "scale")
    import plan

    assert (ROOT / "docs" / "scale-plan.md").read_text() == plan.page(), "Write it anew: python benchmarks/scale/plan.py"


def test_the_page_of_what_is_survived_is_that_of_the_results() -> None:
    import survival

    assert (ROOT / "docs" / "trust.md").read_text() == survival.page(), "Write it anew: python benchmarks/trust/survival.py"


def test_the_pages_of_the_study_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "rank1")
    import page

    pages = page.pages()
    assert {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs" / "study").iterdir()} == set(pages) - {"study.md"}
    for name, text in pages.items():
        assert (ROOT / "docs" / name).read_text() == text, "Write it anew: python benchmarks/rank1/page.py"


@pytest.mark.parametrize("kind", ["clusterer", "negative_sampler", "loss_weighting"])
def test_every_plugin_is_documented_with_its_sign_and_source(kind: str) -> None:
    """The default and the control on the page of the method, every rival on a page of its own."""
    method = (ROOT / "docs" / "method.md").read_text()
    for item in registry.default_registry().items(kind):
        if item.distribution != "clip-negatives" or item.name in ("uniform", "in_batch"):  # the baseline
            continue
        page = ROOT / "docs" / "methods" / f"{item.name}.md"
        text = page.read_text() if page.exists() else method
        assert f"`{item.name}`" in text or text.startswith(f"# {item.name}\n")
        assert item.factory.__name__ in text
        assert page.exists() == ("## When to use it" in text)
        if kind != "clusterer":
            text = inspect.getdoc(item.factory) or ""
            assert re.search(r"Sign:\s", text), item.name
            assert re.search(r"Source:\s|[Oo]ur choice", text), item.name
