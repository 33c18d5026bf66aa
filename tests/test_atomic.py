"""Files and folders appear whole or not at all."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from pathlib import Path

import pytest
import torch

from clip_negatives.atomic import replaced_file, replaced_folder, sole_user, tidy_folder, write_tensors
from clip_negatives.errors import ArtifactError


def _make(path: Path, content: str, fault: type[BaseException] | None = None) -> None:
    with replaced_folder(path, known_by="mark") as folder:
        (folder / "mark").write_text(content)
        if fault is not None:
            raise fault


def _write_half(path: Path) -> None:
    with replaced_file(path) as file:
        file.write_text("half")
        raise KeyboardInterrupt


def test_folder_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for content in ("one", "two"):
        _make(tmp_path / "made", content)
    assert (tmp_path / "made" / "mark").read_text() == "two"
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_interrupted_folder_leaves_the_old_one(tmp_path: Path, fault: type[BaseException]) -> None:
    _make(tmp_path / "made", "one")
    with pytest.raises(fault):
        _make(tmp_path / "made", "half", fault)
    assert (tmp_path / "made" / "mark").read_text() == "one"
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


def test_interruption_between_the_two_renames_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(tmp_path / "made", "one")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == tmp_path / "made" and not self.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path / "made", "two")
    assert (tmp_path / "made" / "mark").read_text() == "one"


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="something else"):
        _make(tmp_path, "one")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"Expected to write .*File exists \(.*/file\)"):
        _make(tmp_path / "file" / "made", "one")
    with (
        pytest.raises(ArtifactError, match=r"Expected to write .*File exists \(.*/file\)"),
        replaced_file(tmp_path / "file" / "made") as file,
    ):
        file.write_text("one")


def test_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("one")
    with pytest.raises(KeyboardInterrupt):
        _write_half(tmp_path / "made")
    assert (tmp_path / "made").read_text() == "one"
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


def _fill_disk(folder: Path) -> None:
    """Write more than the system lets this process write, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        with replaced_file(folder / "made") as file:
            write_tensors({"a": torch.zeros(10_000)}, file)
    except ArtifactError as error:
        (folder / "said").write_text(str(error))


def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_fill_disk, args=(tmp_path,))
    process.start()
    process.join()
    assert "Expected to write" in (tmp_path / "said").read_text()
    assert list(tmp_path.iterdir()) == [tmp_path / "said"]


def _use(folder: Path, log: Path) -> None:
    with sole_user(folder):
        with log.open("a") as stream:
            stream.write("in\n")
        (folder / "file").touch(exist_ok=False)  # the one before took it away
        (folder / "file").unlink()
        with log.open("a") as stream:
            stream.write("out\n")
        folder.rmdir()  # last: without the folder the next may begin


def test_one_process_at_a_time_uses_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    users = [context.Process(target=_use, args=(tmp_path / "used", log)) for _ in range(6)]
    with sole_user(tmp_path / "used"):
        for user in users:
            user.start()
        assert not log.exists()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0] * 6
    assert log.read_text() == "in\nout\n" * 6


@pytest.mark.parametrize("there", [True, False])
def test_what_a_killed_process_left_is_tidied_up(tmp_path: Path, there: bool) -> None:
    """An older folder that was put aside is put back where nothing has taken its place."""
    with replaced_folder(tmp_path / "a", known_by="mark") as folder:
        partial = folder.name
    for name in (partial, f"{partial}.old", ".a.features", ".a.b.12345678.partial", "a.12345678.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").write_text(name)
    if not there:
        (tmp_path / "a").rmdir()
    tidy_folder(tmp_path / "a")
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        ".a.b.12345678.partial",
        ".a.features",
        "a",
        "a.12345678.partial",
    ]
    assert (tmp_path / "a" / "mark").exists() is not there


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    """In a folder that others write to, somebody may lay a link to a file of ours where we are about to write."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".made.partial").symlink_to(tmp_path / "precious")
    with replaced_file(tmp_path / "made") as file:
        file.write_text("made")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "made").read_text() == "made"
    assert not (tmp_path / "made").is_symlink()
