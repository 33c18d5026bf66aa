"""The files of a tar that is read as a stream, as webdataset reads it, but so that no tear goes unnoticed."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Collection, Iterator
from typing import Any

from webdataset.tariterators import base_plus_ext

from clip_negatives.limits import limit

SKIPPED = re.compile(r"__[^/]*__($|/)")
"""Names of files that webdataset keeps for itself."""


HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Kinds of members that say something of the next ones; `tarfile` reads them as a whole."""

UNREADABLE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
"""What `tarfile` raises for a damaged tar: also where a number is none, or past any file, or headers follow without end."""


class Member(tarfile.TarInfo):
    """Refuse what is no header: `tarfile` takes a header that is cut or damaged for the end of the tar.

    And refuse one that announces more than it may: `tarfile` would take memory for it at once.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        """Return what a header says.

        Raises:
            tarfile.ReadError: it is damaged.
        """
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end of the tar, but: {error}") from error
        if not 0 <= member.size < 2**62 or (member.type in HEADERS and member.size > limit("header_bytes")):
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def files(stream: Any, wanted: Collection[str] | None) -> Iterator[tuple[str, bytes | None]]:
    """Yield name and content of each regular file of a tar, compressed or not, in their order.

    What has another ending than those `wanted` is passed over, and its content is empty here; so is that of files over the
    limit, None in its place. Nothing is written anywhere: names and links of the tar are names to us.

    Args:
        stream: of which nothing but ``read`` is called.
        wanted: endings of the files that are read, without the dot; None reads all that have one.

    Raises:
        tarfile.TarError: it is no tar, damaged, or ends before its end is said; so do EOFError and zlib.error.
    """
    at_most = limit("member_bytes")
    with _opened(stream) as tar:
        while (member := _next(tar)) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it remembers all
            if not member.isreg() or SKIPPED.match(member.name):
                continue
            _, ending = base_plus_ext(member.name)
            if ending is None or (wanted is not None and ending.lower() not in wanted):
                yield member.name, b""
            elif member.size > at_most:
                yield member.name, None
            elif (content := tar.extractfile(member)) is not None:
                yield member.name, content.read()


def _opened(stream: Any) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|*", tarinfo=Member)
    except TypeError as error:  # of the header of a gzip that is cut
        raise tarfile.ReadError("a header that is cut") from error


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (ValueError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError(f"a header that says nothing: {type(error).__name__}") from error
