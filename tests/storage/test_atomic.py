"""Errors of the disk, and tensors."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.ownership import replaced_file


def _fill_disk(folder: Path) -> None:
    """Write more than the process may write, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        with replaced_file(folder / "made") as file:
            write_tensors({"a": torch.zeros(10_000)}, file)
    except ArtifactError as error:
        (folder / "message").write_text(str(error))


def test_full_disk_is_an_error(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_fill_disk, args=(tmp_path,))
    process.start()
    process.join()
    assert "cannot be written: " in (tmp_path / "message").read_text()
    assert list(tmp_path.iterdir()) == [tmp_path / "message"]


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_tensors_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors({"a": torch.zeros(2)}, tmp_path / "file")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask
