"""The files of a tar that is read as a stream, as webdataset reads it, but so that no tear goes unnoticed."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any

SKIPPED = re.compile(r"__[^/]*__($|/)")
"""Names of files that webdataset keeps for itself."""


class _Member(tarfile.TarInfo):
    """Refuse what is no header: `tarfile` takes a header that is cut or damaged for the end of the tar."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end of the tar, but: {error}") from error


def files(stream: Any) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each regular file of a tar, compressed or not, in their order.

    Args:
        stream: of which nothing but ``read`` is called.

    Raises:
        tarfile.TarError: it is no tar, damaged, or ends before its end is said; so do EOFError and zlib.error.
    """
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it remembers all
            if member.isreg() and not SKIPPED.match(member.name):
                content = tar.extractfile(member)
                if content is not None:
                    yield member.name, content.read()
