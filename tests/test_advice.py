"""Advice that can be followed: names of arguments, and remedies by the error of the operating system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from clip_negatives.advice import argument, named, remedies
from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import writing


def test_names_of_arguments_end_with_their_block() -> None:
    with named({"a": "--a", "b": "--b"}):
        with named({"b": "B"}):
            assert (argument("a"), argument("b"), argument("c")) == ("--a", "B", "c=")
        with pytest.raises(KeyError), named({"b": "B"}):
            raise KeyError
        assert argument("b") == "--b"
    assert (argument("a"), argument("a", "Columns(a=...)")) == ("a=", "Columns(a=...)")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free disk space, or name another path."),
        (errno.EDQUOT, "Free disk space, or name another path."),
        (errno.EACCES, "Change its permissions, or name another path."),
        (errno.EPERM, "Change its permissions, or name another path."),
        (errno.EIO, "Check the disk, which may be full or damaged, or name another path."),
        (errno.EROFS, "Name another path."),
        (errno.ELOOP, "Name another path."),
        (errno.ENOTDIR, "Name another path."),
    ],
)
def test_only_a_full_disk_is_to_be_freed(number: int, remedy: str) -> None:
    with pytest.raises(ArtifactError) as raised, writing(Path("out")):
        raise OSError(number, os.strerror(number), "out/file")
    assert str(raised.value) == f"out cannot be written: {os.strerror(number)} (out/file). {remedy}"


def test_an_error_without_a_remedy_has_none() -> None:
    assert remedies(OSError(errno.EISDIR, "Is a directory")) == ""
    assert remedies(OSError("no number"), "train again") == "Train again."
