"""Read the files of a tar stream, or their bytes, as webdataset does, but with size limits and detection of damage.

`tarfile` mistakes a damaged header for the end of the tar, and allocates any size that a header claims.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from webdataset.tariterators import base_plus_ext

from clip_negatives.dataset.urls import READ_BYTES, ShardStream
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


class _RecordingStream:
    """The content of a tar. It keeps the bytes that `tarfile` read, from byte `start` on."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.start, self._kept = stream, 0, bytearray()

    def read(self, size: int) -> bytes:
        block: bytes = self._stream.read(size)
        self._kept += block
        return block

    def seek(self, offset: int) -> None:
        """Skip bytes; forget them and the earlier ones."""
        self._stream.seek(offset)
        self.start, self._kept = self.tell(), bytearray()

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        self._stream.close()

    def kept_from(self, offset: int) -> bytes:
        """Return the kept bytes from an offset on."""
        return bytes(self._kept[offset - self.start :])


class _RecordedTar(tarfile.TarFile):
    """A tar, plain or compressed, that is read once; its `content` records the bytes of its members."""

    def __init__(self, name: str | None, mode: Any, fileobj: Any, **options: Any) -> None:
        self.content = _RecordingStream(fileobj)
        super().__init__(name, mode, self.content, **options)  # type: ignore[arg-type]

    def member_bytes(self, member: tarfile.TarInfo) -> bytes:
        """Return the header and the data of the current member, up to the next header."""
        while (left := self.offset - self.content.tell()) > 0 and self.content.read(min(left, READ_BYTES)):
            pass
        is_cut = self.content.tell() - member.offset_data < member.size
        if left >= tarfile.BLOCKSIZE or (left > 0 and is_cut):
            raise tarfile.ReadError("unexpected end of data")
        return self.content.kept_from(member.offset) + bytes(left)  # the end of the tar may lack zeros


def raw_samples(stream: Any, keys: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the bytes of each sample of a tar: headers and data of its files, in order.

    If the key is not in `keys`, bytes may be missing. Damage raises a `DAMAGED` error after the samples before it; the last of
    them may lack files.
    """
    damage: list[Exception] = []

    def members() -> Iterator[tuple[str, bytes]]:
        try:
            yield from _raw_members(stream, keys)
        except DAMAGED as error:
            damage.append(error)

    for key, sample in grouped(members()):
        yield key, b"".join(sample.values())
    if damage:
        raise damage[0]


def _raw_members(stream: Any, keys: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each regular file; b"" if its key is not in `keys` when the file begins."""
    with tar_errors(), _RecordedTar.open(fileobj=stream, mode="r|*", tarinfo=Member) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member otherwise
            if member.isreg() and not SKIPPED.match(member.name):
                yield member.name, tar.member_bytes(member) if base_plus_ext(member.name)[0] in keys else b""
            tar.content.seek(tar.offset)
