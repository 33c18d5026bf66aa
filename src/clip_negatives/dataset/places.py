"""Where samples lie in a tar, to read each by itself."""

from __future__ import annotations

import errno
import itertools
import tarfile
from collections.abc import Iterator
from typing import IO

from webdataset.tariterators import base_plus_ext

from clip_negatives.dataset.archive import SKIPPED, UNREADABLE, Member
from clip_negatives.dataset.urls import open_url, unreadable
from clip_negatives.errors import DataError

BLOCK = 512
"""Bytes that the contents of a file in a tar are filled up to."""


def places_of(address: str) -> dict[str, tuple[int, int]]:
    """Return first byte and size of each sample of a tar, by its key; of a torn tar of those that stand before the tear."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with open_url(address) as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=Member) as tar:
            for key, members in itertools.groupby(_keyed(tar), key=lambda one: one[0]):
                files = [member for _, member in members]
                end = files[-1].offset_data + -(-files[-1].size // BLOCK) * BLOCK
                if key in places:
                    raise DataError(
                        f"Expected the files of each sample together in {address}, got {key} twice. Write it again."
                    )
                places[key] = files[0].offset, end - files[0].offset
    except UNREADABLE:
        pass  # prepare has said so, and has taken what stands before
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is said of a place past any that a file can have
            raise unreadable("tar", address, error) from error
    return places


def _keyed(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the files that webdataset takes for parts of samples, with their keys."""
    for member in tar:
        key, _ = base_plus_ext(member.name)
        if member.isreg() and key is not None and not SKIPPED.match(member.name):
            yield key, member


def read_part(stream: IO[bytes], start: int, size: int, name: str) -> bytes:
    """Return some bytes of a tar.

    Raises:
        DataError: it cannot be read, or ends before.
    """
    try:
        stream.seek(start)
        found = stream.read(size)
    except OSError as error:
        raise unreadable("tar", name, error) from error
    if len(found) != size:
        raise DataError(f"Expected {size} bytes at {start} of {name}, got {len(found)}: it changed meanwhile. Start again.")
    return found
