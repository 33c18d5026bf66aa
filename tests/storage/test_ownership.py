"""Folders and files are replaced whole or not at all, and only what this package wrote is replaced or deleted."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import clip_negatives
import clip_negatives_plugins
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.ownership import (
    OwnedFolder,
    claim_work,
    clear_work,
    new_folder,
    remove_inside,
    remove_work,
    replaced_file,
)
from clip_negatives.storage.paths import WORK, files_in

MADE = OwnedFolder("made", "made.json")


def make(path: Path, content: str, fault: type[BaseException] | None = None, *, cached: bool = False) -> None:
    with MADE.replacing(path, cached=cached) as folder:
        (folder / "data").write_text(content)
        (folder / "parts").mkdir()
        (folder / "parts" / "0").write_text(content)
        MADE.write_manifest(folder, {})
        if fault is not None:
            raise fault


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def test_folder_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for content in ("one", "two!"):
        make(tmp_path / "made", content)
    assert (tmp_path / "made" / "data").read_text() == "two!"
    assert files_in(tmp_path / "made") == {"data", "parts/0", "made.json"}
    assert names(tmp_path) == {"made"}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_interrupted_folder_leaves_the_old_one(tmp_path: Path, fault: type[BaseException]) -> None:
    make(tmp_path / "made", "one")
    with pytest.raises(fault):
        make(tmp_path / "made", "half", fault)
    assert (tmp_path / "made" / "data").read_text() == "one"
    assert names(tmp_path) == {"made"}


class Killed(BaseException):
    """The process is killed: nothing is cleaned up, see `killed_at_rename`."""


@pytest.fixture
def killed_at_rename(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return a list with the number of the rename before which the process is killed; after it, nothing can be changed."""
    at, rename = [0], Path.rename

    def counted(self: Path, target: Path) -> Path:
        at[0] -= 1
        if at[0] < 0:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patches:
        patches.setattr(Path, "rename", counted)
        patches.setattr("clip_negatives.storage.ownership.shutil.rmtree", lambda *arguments, **named: None)
        yield at


@pytest.mark.parametrize("at", range(6))
def test_killed_at_any_rename_loses_neither_our_files_nor_notes(tmp_path: Path, at: int, killed_at_rename: list[int]) -> None:
    target = tmp_path / "made"
    killed_at_rename[0] = 100
    make(target, "one")
    for note in ("notes.txt", "parts/notes.txt", "mine/deep/notes.txt"):
        (target / note).parent.mkdir(parents=True, exist_ok=True)
        (target / note).write_text("precious")
    killed_at_rename[0] = at
    try:
        make(target, "two!")
    except Killed:
        killed_at_rename[0] = 100
        MADE.tidy(target)
    content = (target / "data").read_text()
    assert content == ("one" if at < 2 else "two!")
    assert (target / "parts" / "0").read_text() == content
    for note in ("notes.txt", "parts/notes.txt", "mine/deep/notes.txt"):
        assert (target / note).read_text() == "precious"


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "it has files, but no made.json"),
        ("{}", "its made.json was not written by clip-negatives"),
        ("[]", "its made.json was not written by clip-negatives"),
        ("half a", "its made.json was not written by clip-negatives"),
        ('{"files": {"src/thesis.tex": 8}}', "its made.json was not written by clip-negatives"),
        ('{"tool": "clip-negatives", "kind": "clusters", "format": 1, "files": {}}', "is of another program, kind or version"),
        ('{"tool": "clip-negatives", "kind": "made", "format": 99, "files": {}}', "is of another program, kind or version"),
        ('{"tool": "npm", "kind": "made", "format": 1, "files": {}}', "is of another program, kind or version"),
    ],
)
def test_foreign_folder_is_refused(tmp_path: Path, manifest: str | None, reason: str) -> None:
    (tmp_path / "project" / "src").mkdir(parents=True)
    (tmp_path / "project" / "src" / "thesis.tex").write_text("precious")
    if manifest is not None:
        (tmp_path / "project" / "made.json").write_text(manifest)
    for act in (lambda: MADE.check(tmp_path / "project"), lambda: make(tmp_path / "project", "one")):
        with pytest.raises(ArtifactError, match=f"project is not a made folder: .*{reason}. Name another path"):
            act()
    assert (tmp_path / "project" / "src" / "thesis.tex").read_text() == "precious"


def test_listed_paths_outside_the_folder_are_not_touched(tmp_path: Path) -> None:
    for name in ("outside", "target/inside"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    make(tmp_path / "made", "one")
    (tmp_path / "made" / "link").symlink_to(tmp_path / "target")
    manifest = json.loads((tmp_path / "made" / "made.json").read_text())
    manifest["files"] |= {name: {"bytes": 8} for name in ("../outside", str(tmp_path / "outside"), "link/inside")}
    (tmp_path / "made" / "made.json").write_text(json.dumps(manifest))
    make(tmp_path / "made", "two!")
    assert (tmp_path / "outside").read_text() == (tmp_path / "target" / "inside").read_text() == "precious"
    assert (tmp_path / "made" / "link").readlink() == tmp_path / "target"


@pytest.mark.parametrize("note", ["data", "parts", "parts/0/deep"])
def test_file_in_the_way_is_refused_by_name(tmp_path: Path, note: str) -> None:
    with MADE.replacing(tmp_path / "made") as folder:
        MADE.write_manifest(folder, {})
    (tmp_path / "made" / note).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "made" / note).write_text("precious")
    with pytest.raises(ArtifactError, match=f"made/{note} would be replaced, but this command did not write it"):
        make(tmp_path / "made", "one")
    assert (tmp_path / "made" / note).read_text() == "precious"
    assert names(tmp_path) == {"made"}


def test_listed_file_that_changed_is_refused_unless_it_is_cached(tmp_path: Path) -> None:
    make(tmp_path / "made", "one")
    (tmp_path / "made" / "data").write_text("edited by hand")
    with pytest.raises(ArtifactError, match=r"made/data would be replaced, but .* it changed since"):
        make(tmp_path / "made", "two!")
    assert (tmp_path / "made" / "data").read_text() == "edited by hand"
    make(tmp_path / "made", "two!", cached=True)
    assert (tmp_path / "made" / "data").read_text() == "two!"


def test_manifest_that_lacks_a_file_is_a_bug(tmp_path: Path) -> None:
    def make_incomplete() -> None:
        with MADE.replacing(tmp_path / "made") as folder:
            MADE.write_manifest(folder, {})
            (folder / "late").touch()

    with pytest.raises(RuntimeError, match="does not list its files"):
        make_incomplete()
    assert names(tmp_path) == set()


def test_link_is_kept_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "made").symlink_to(tmp_path / "disk")
    (tmp_path / "file").symlink_to(tmp_path / "disk.txt")
    (tmp_path / "disk.txt").write_text("one")
    for content in ("one", "two!"):
        make(tmp_path / "made", content)
        with replaced_file(tmp_path / "file") as file:
            file.write_text(content)
    assert (tmp_path / "made").readlink() == tmp_path / "disk"
    assert (tmp_path / "file").readlink() == tmp_path / "disk.txt"
    assert (tmp_path / "disk" / "data").read_text() == (tmp_path / "disk.txt").read_text() == "two!"


def write(path: Path) -> None:
    with replaced_file(path) as file:
        file.write_text("one")


@pytest.mark.parametrize("act", [MADE.check, lambda path: make(path, "one"), write])
def test_outputs_that_cannot_be(tmp_path: Path, act: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("nowhere")
    Path("circle").symlink_to("circle")
    for path, reason in (
        ("dangling", "is a link to nowhere, which does not exist"),
        ("circle", "circle cannot be used: it is in a circle of links"),
        (Path("file:///folder/out"), "file:///folder/out is a URL"),
        ("s3://bucket/out", "s3://bucket/out is a URL, but results are written to a local disk"),
        (Path("s3://bucket/out"), "s3://bucket/out is a URL, but results are written to a local disk"),
    ):
        with pytest.raises(ArtifactError, match=reason):
            act(path)  # type: ignore[operator]
    assert names(tmp_path) == {"dangling", "circle"}


def test_file_in_the_place_of_a_folder_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ArtifactError, match="file is a file, not a folder"):
        make(tmp_path / "file", "one")
    with pytest.raises(ArtifactError, match="is a folder, not a file"), replaced_file(tmp_path):
        pass
    with pytest.raises(ArtifactError, match=r"cannot be written: (File exists|Not a directory) \(.*/file"):
        make(tmp_path / "file" / "made", "one")
    with pytest.raises(ArtifactError, match=r"cannot be written: (File exists|Not a directory) \(.*/file"):
        write(tmp_path / "file" / "made")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path / "made", "one")
        claim_work(tmp_path / "work")
        write(tmp_path / "file")
    finally:
        os.umask(before)
    for item in [*tmp_path.iterdir(), *(tmp_path / "made").iterdir()]:
        assert item.stat().st_mode & 0o777 == (0o777 if item.is_dir() else 0o666) & ~umask, item


def test_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("one")

    def write_half() -> None:
        with replaced_file(tmp_path / "made") as file:
            file.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "made").read_text() == "one"
    assert names(tmp_path) == {"made"}


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with replaced_file(tmp_path / "made") as first, replaced_file(tmp_path / "made") as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert (tmp_path / "made").read_text() == "first"  # it was finished last
    assert names(tmp_path) == {"made"}


def _killed_as_it_writes(path: Path) -> None:
    with replaced_file(path) as file:
        file.write_text("half")
        os._exit(9)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_as_it_writes, args=(tmp_path / "made",))
    process.start()
    process.join()
    (left,) = names(tmp_path)
    mine = left.replace(f"-{process.pid}.", f"-{os.getpid()}.")
    (tmp_path / mine).touch()  # of this process, which runs
    write(tmp_path / "made")
    assert names(tmp_path) == {"made", mine}


def test_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared folder, another user may place a link to one of our files where we are about to write."""
    monkeypatch.setattr("clip_negatives.storage.ownership.secrets.token_hex", lambda size: "0" * 2 * size)
    with replaced_file(tmp_path / "made") as file:
        name = file.name
    (tmp_path / "precious").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(ArtifactError, match="File exists"):
        write(tmp_path / "made")
    assert (tmp_path / "precious").read_text() == "precious"


def test_new_folder_replaces_nothing(tmp_path: Path) -> None:
    for place, expected in (("new", "new"), ("old", "old")):
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / "file").write_text("old")
        try:
            with new_folder(tmp_path / place) as folder:
                (folder / "file").write_text("new")
        except ArtifactError as error:
            assert "cannot be written: Directory not empty" in str(error)  # noqa: PT017
        assert (tmp_path / place / "file").read_text() == expected
    assert names(tmp_path) == {"new", "old"}
    assert names(tmp_path / "new") == {"file"}


def test_work_folder(tmp_path: Path) -> None:
    work = tmp_path / ".out.features"
    for _ in range(2):
        claim_work(work)
    for name in ("a", "b", "c"):
        (work / name).mkdir()
        (work / name / "file").touch()
    remove_inside(work, [work / "a" / "file", work / "missing"])
    clear_work(work, kept=[work / "a"])
    assert files_in(work) == {WORK, "a/"}
    remove_work(work)
    remove_work(work)
    assert names(tmp_path) == set()


def test_folder_without_our_mark_is_no_work_folder(tmp_path: Path) -> None:
    work = tmp_path / ".out.features"
    work.mkdir()
    (work / "thesis.txt").write_text("precious")
    (tmp_path / "link").symlink_to(work)
    for path in (work, work / "thesis.txt", tmp_path / "link"):
        with pytest.raises(ArtifactError, match="is in the way: it was not written by clip-negatives"):
            claim_work(path)
    remove_work(work)
    with pytest.raises(RuntimeError, match="not in a work folder"):
        remove_inside(work, [work / "thesis.txt"])
    claim_work(tmp_path / "ours")
    with pytest.raises(RuntimeError, match="not in a work folder"):
        remove_inside(tmp_path / "ours", [tmp_path / "ours" / ".." / ".out.features"])
    assert (work / "thesis.txt").read_text() == "precious"


def test_only_names_that_we_give_are_tidied_up(tmp_path: Path) -> None:
    foreign = (".made.12345678.partial", ".made.features", ".made.b.12345678.partial", "made.12345678.partial")
    for name in foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("precious")
    make(tmp_path / "made", "one")
    claim_work(tmp_path / ".made.87654321.partial")
    MADE.tidy(tmp_path / "made")
    assert names(tmp_path) == {"made", *foreign}


def test_every_destructive_call_is_in_this_module() -> None:
    found = set()
    for package in (clip_negatives, clip_negatives_plugins):
        for file in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                name, arguments = node.func.attr, len(node.args)
                destructive = name in {"rmtree", "unlink", "rmdir", "rename", "renames", "removedirs", "move"}
                # `str.replace` takes two arguments and `dataclasses.replace` named ones; `list.remove` is no method of os.
                moves = name == "replace" and arguments == 1 and not node.keywords
                removes = name == "remove" and ast.unparse(node.func.value) == "os"
                if destructive or moves or removes:
                    found.add(file.name)
    assert found == {"ownership.py"}
