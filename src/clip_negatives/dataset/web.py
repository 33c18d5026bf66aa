"""Files on web servers and in object stores: a read that fails for a passing reason is repeated.

fsspec does not repeat requests to web servers. s3fs and gcsfs repeat requests themselves, but take a short answer as complete.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")

PAUSES = (0.5, 2.0, 8.0)  # seconds before each further attempt
PASSING = (408, 425, 429)  # status codes that may pass, besides those from 500 on
SKIPPED_BYTES = 2**20  # read at a time to come back to a place without ranges


class ShortReadError(ConnectionError):
    """A server sent fewer bytes than it announced."""


def is_web(url: str) -> bool:
    """Return whether a URL is of a web server."""
    return url.startswith(("http://", "https://"))


def repeated(url: str, read: Callable[[], T]) -> T:
    """Return ``read()``; for a URL, call it again after a failure that may pass, `PAUSES` apart."""
    for pause in PAUSES if "://" in url else ():
        try:
            return read()
        except Exception as error:  # noqa: PERF203  (few attempts)
            if not _may_pass(error):
                raise
            time.sleep(pause)
    return read()


def read_bytes(system: Any, path: str, start: int, stop: int) -> bytes:
    """Return the bytes start .. stop-1 of a file, or the whole file if its server ignores ranges; ShortReadError for fewer."""
    content: bytes = system.cat_file(path, start=start, end=stop)
    if len(content) < stop - start:
        raise ShortReadError(f"the server sent {len(content)} of {stop - start} bytes")
    return content


class RemoteStream(io.RawIOBase):
    """A file at a URL of fsspec. After a failed read, it is opened again at the same place."""

    def __init__(self, url: str) -> None:
        self._url, self._place, self._has_ranges = url, 0, True
        self._stream: Any = None  # `close` reads it even if the next line fails
        self._stream = repeated(url, self._opened)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether the server has random access."""
        return _size(self._stream) is not None

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes; an error if they are fewer than the server announced."""
        block = repeated(self._url, lambda: self._read(-1 if size is None else size))
        self._place += len(block)
        return block

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer, and return their number."""
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a byte; ValueError if the server does not tell the size of the file."""
        self._stream = self._stream or repeated(self._url, self._opened)
        self._stream.seek(offset, whence)
        self._place = self._stream.tell()
        return self._place

    def tell(self) -> int:
        """Return the number of the next byte."""
        return self._place

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()
        super().close()

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self, size: int) -> bytes:
        try:
            self._stream = self._stream or self._opened()
            block: bytes = self._stream.read(size)
            self._check_whole(len(block), size)
        except ValueError:  # of fsspec, for a server that sends the whole file for a range
            self._disconnect()
            if not self._has_ranges or not is_web(self._url):
                raise
            self._has_ranges = False
            return self._read(size)
        except Exception:
            self._disconnect()
            raise
        return block

    def _check_whole(self, n_read: int, size: int) -> None:
        """Raise ShortReadError if fewer bytes were read than the file has; fsspec does not compare them."""
        total = _size(self._stream)
        if total is None:
            return
        left = max(0, total - self._place)
        if n_read < (left if size < 0 else min(size, left)):
            raise ShortReadError(f"the server sent {self._place + n_read} of {total} bytes")

    def _opened(self) -> Any:
        """Return the file, opened at the current place."""
        stream = fsspec.open(self._url, "rb", **({} if self._has_ranges else {"block_size": 0})).open()
        if _size(stream) is not None:
            stream.seek(self._place)
            return stream
        left = self._place
        while left:
            block = stream.read(min(left, SKIPPED_BYTES))
            if not block:
                raise ShortReadError(f"the server sent {self._place - left} bytes, before {self._place}")
            left -= len(block)
        return stream


def _size(stream: Any) -> int | None:
    """Return the size of an open file of fsspec; None if unknown, as without random access."""
    size = getattr(stream, "size", None)
    return size if isinstance(size, int) else None


def _may_pass(error: BaseException | None) -> bool:
    """Return whether an error, or a cause of it, is a lost connection, a short read or a status of `PASSING`."""
    import asyncio

    import aiohttp

    lost = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError, ConnectionError, TimeoutError)
    while error is not None:
        if isinstance(error, aiohttp.ClientResponseError):
            return error.status >= 500 or error.status in PASSING
        if isinstance(error, lost):
            return True
        error = error.__cause__
    return False
