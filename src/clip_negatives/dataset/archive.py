"""Read files or byte ranges of a tar stream as webdataset does, but with size limits and detection of damage.

`tarfile` mistakes a damaged header for the end of the tar, and allocates any size that a header claims.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from webdataset.tariterators import base_plus_ext

from clip_negatives.dataset.urls import ShardStream, open_url
from clip_negatives.errors import DataError
from clip_negatives.storage.limits import limit

T = TypeVar("T")
SKIPPED = re.compile(r"__[^/]*__($|/)")  # file names that webdataset reserves

# Members that describe the next member; `tarfile` reads each as a whole.
HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

DAMAGED = (tarfile.TarError, EOFError, zlib.error)  # an OSError means that the tar is unreachable, which may be temporary


class Member(tarfile.TarInfo):
    """A tar header; a damaged header, or one that claims too many bytes, is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        """Return the member that a header describes, or raise ReadError if the header is damaged."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header: {error}") from error
        if not 0 <= member.size < 2**62 or (member.type in HEADERS and member.size > limit("header_bytes")):
            raise tarfile.ReadError(f"a header claims {member.size} bytes")
        return member


def files(stream: ShardStream, endings: Collection[str] | None) -> Iterator[tuple[str, bytes | None]]:
    """Yield name and content of each regular file of a tar, plain or compressed, in order; damage raises a `DAMAGED` error.

    The content is b"" if the ending of the name is not in `endings` (None: all endings), and None if the file is too large.
    """
    max_bytes = limit("member_bytes")
    opened: Any = stream  # has what `tarfile` needs of a file
    with tar_errors(), tarfile.open(fileobj=opened, mode="r|*", tarinfo=Member) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member otherwise
            if not member.isreg() or SKIPPED.match(member.name):
                continue
            _, ending = base_plus_ext(member.name)
            if ending is None or (endings is not None and ending.lower() not in endings):
                yield member.name, b""
            elif member.size > max_bytes:
                yield member.name, None
            elif (content := tar.extractfile(member)) is not None:
                yield member.name, content.read()
    stream.finish()


def grouped(members: Iterable[tuple[str, T]]) -> Iterator[tuple[str, dict[str, T]]]:
    """Yield the key of each sample and its members by ending, from names and members in the order of the tar.

    As in open_clip, a sample ends where the key changes or an ending repeats.

    >>> list(grouped([("a.jpg", 1), ("a.TXT", 2), ("a.jpg", 3)]))
    [('a', {'jpg': 1, 'txt': 2}), ('a', {'jpg': 3})]
    """
    current, sample = "", dict[str, T]()
    for name, member in members:
        key, ending = base_plus_ext(name)
        if key is None:
            continue
        if sample and (key != current or ending.lower() in sample):
            yield current, sample
            sample = {}
        current = key
        sample[ending.lower()] = member
    if sample:
        yield current, sample


@contextmanager
def tar_errors() -> Iterator[None]:
    """Turn the errors that `tarfile` raises for an invalid header into a ReadError."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError(f"invalid header: {type(error).__name__}") from error


def sample_offsets(address: str) -> dict[str, tuple[int, int]]:
    """Return the offset and size of each sample of a tar, by key; stop at damage."""
    offsets: dict[str, tuple[int, int]] = {}
    try:
        with tar_errors(), open_url(address) as opened:
            stream: Any = ShardStream(opened, address)
            tar = tarfile.open(fileobj=stream, mode="r:", tarinfo=Member)  # noqa: SIM115  (the stream is closed)
            for key, sample in grouped(_sample_files(tar)):
                members = list(sample.values())
                start, blocks = members[0].offset, -(-members[-1].size // tarfile.BLOCKSIZE)
                # Of samples with the same key, `prepare` uses the first.
                offsets.setdefault(key, (start, members[-1].offset_data + blocks * tarfile.BLOCKSIZE - start))
    except DAMAGED:
        pass  # prepare reported the damage, and clustered only the samples before it
    return offsets


def _sample_files(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for member in tar:
        if member.isreg() and not SKIPPED.match(member.name):
            yield member.name, member


def read_range(stream: IO[bytes], start: int, size: int, name: str) -> bytes:
    """Return a byte range of an open tar, or raise DataError if the tar is too short or cannot be read."""
    reader = ShardStream(stream, name)
    try:
        reader.seek(start)
        content = reader.read(size)
    except EOFError:
        content = b""
    if len(content) != size:
        raise DataError(f"The tar {name} changed while it was read: it is too short. Run the command again.")
    return content
