"""Folders in an object store are complete or not there, and only what this package wrote is replaced or removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.ownership import OwnedFolder
from clip_negatives.storage.paths import WORK
from clip_negatives.storage.stored_folder import local_output

MADE = OwnedFolder("made", "made.json")
URL = "memory://made"


@pytest.fixture(autouse=True)
def memory() -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def make(**files: str) -> None:
    with local_output(MADE, URL) as output, MADE.replacing(output) as folder:
        for name, content in files.items():
            (folder / name).write_text(content)
        MADE.write_manifest(folder, {})


def stored(memory: MemoryFileSystem) -> dict[str, str]:
    """Return name and content of the stored files, except for the manifest."""
    files = {path.rpartition("/")[2]: memory.cat_file(path).decode() for path in memory.find("/made")}
    assert (MADE.manifest in files) != (WORK in files)
    return {name: content for name, content in files.items() if name != MADE.manifest}


def test_folder_is_replaced_and_files_that_it_no_longer_has_are_removed(memory: MemoryFileSystem) -> None:
    make(a="one", b="two")
    assert stored(memory) == {"a": "one", "b": "two"}
    make(a="three")
    assert stored(memory) == {"a": "three"}


def test_a_failed_block_uploads_nothing(memory: MemoryFileSystem) -> None:
    make(a="one")
    with pytest.raises(RuntimeError, match="fault"), local_output(MADE, URL):
        raise RuntimeError("fault")
    assert stored(memory) == {"a": "one"}


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("file", ["a", "b", MADE.manifest])
def test_an_interrupted_upload_is_not_complete_and_can_be_repeated(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, file: str, is_first: bool
) -> None:
    if not is_first:
        make(a="older", b="older", c="older")

    def put(self: MemoryFileSystem, source: str, target: str, **options: object) -> None:
        if Path(target).name == file:
            raise ConnectionError("the store is gone")
        memory.pipe_file(target, Path(source).read_bytes())

    with monkeypatch.context() as patches:
        patches.setattr(MemoryFileSystem, "put_file", put)
        with pytest.raises(ArtifactError, match="memory://made cannot be read or written: the store is gone"):
            make(a="one", b="two")
    assert not memory.exists(f"/made/{MADE.manifest}")
    make(a="one", b="two")
    assert stored(memory) == {"a": "one", "b": "two"}


def test_foreign_files_stay(memory: MemoryFileSystem) -> None:
    memory.pipe_file("/made/a", b"foreign")
    with pytest.raises(ArtifactError, match=r"memory://made has files, but no made\.json of clip-negatives\. Name another URL"):
        make(a="one")
    assert memory.cat_file("/made/a") == b"foreign"


@pytest.mark.parametrize(
    "manifest", [b"{", b"[]", b'{"tool": "other", "kind": "made", "format": 1, "files": {"a": {"bytes": 7}}}']
)
def test_a_manifest_of_another_program_protects_its_files(memory: MemoryFileSystem, manifest: bytes) -> None:
    memory.pipe_file("/made/a", b"foreign")
    memory.pipe_file(f"/made/{MADE.manifest}", manifest)
    with pytest.raises(ArtifactError, match="Name another URL"):
        make(a="one")
    assert memory.cat_file("/made/a") == b"foreign"


def test_files_that_were_added_or_changed_are_not_replaced(memory: MemoryFileSystem) -> None:
    make(a="one")
    memory.pipe_file("/made/b", b"added")
    make(a="three")
    assert stored(memory) == {"a": "three", "b": "added"}
    with pytest.raises(ArtifactError, match="memory://made/b would be replaced, but this command did not write it"):
        make(b="two")
    assert stored(memory) == {"a": "three", "b": "added"}
    memory.pipe_file("/made/a", b"changed")
    with pytest.raises(ArtifactError, match="memory://made/a would be replaced"):
        make(a="four")


def test_a_path_is_yielded_as_it_is(tmp_path: Path) -> None:
    with local_output(MADE, tmp_path / "made") as folder:
        assert folder == tmp_path / "made"
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "other").write_text("foreign")
    with pytest.raises(ArtifactError, match="is not a made folder"), local_output(MADE, tmp_path / "made"):
        pass
