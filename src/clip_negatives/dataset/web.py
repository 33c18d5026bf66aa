"""Files on web servers (``http://``, ``https://``): a read that fails for a passing reason is repeated.

fsspec does not repeat requests to web servers. Its other file systems, such as s3fs and gcsfs, do so themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")

PAUSES = (0.5, 2.0, 8.0)  # seconds before each further attempt
PASSING = (408, 425, 429)  # status codes that may pass, besides those from 500 on
SKIPPED_BYTES = 2**20  # read at a time to come back to a place without ranges


class ShortReadError(ConnectionError):
    """A web server sent fewer bytes than it announced."""


def is_web(url: str) -> bool:
    """Return whether a URL is of a web server."""
    return url.startswith(("http://", "https://"))


def repeated(url: str, read: Callable[[], T]) -> T:
    """Return ``read()``; call it again after a failure of a web server that may pass, `PAUSES` apart."""
    for pause in PAUSES if is_web(url) else ():
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


class WebStream:
    """A file on a web server. After a failed read, it is opened again at the same place."""

    def __init__(self, url: str) -> None:
        self._url, self._place, self._has_ranges = url, 0, True
        self._stream: Any = repeated(url, self._opened)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; an error if they are fewer than the server announced."""
        block = repeated(self._url, lambda: self._read(size))
        self._place += len(block)
        return block

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def __enter__(self) -> WebStream:
        """Return the stream."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the connection."""
        self.close()

    def _read(self, size: int) -> bytes:
        try:
            self._stream = self._stream or self._opened()
            block: bytes = self._stream.read(size)
            self._check_whole(len(block), size)
        except ValueError:  # of fsspec, for a server that sends the whole file for a range
            self.close()
            if not self._has_ranges:
                raise
            self._has_ranges = False
            return self._read(size)
        except Exception:
            self.close()
            raise
        return block

    def _check_whole(self, n_read: int, size: int) -> None:
        """Raise ShortReadError if fewer bytes were read than the file has; fsspec does not compare them."""
        total = self._stream.size
        if total is None:
            return
        left = max(0, total - self._place)
        if n_read < (left if size < 0 else min(size, left)):
            raise ShortReadError(f"the server sent {self._place + n_read} of {total} bytes")

    def _opened(self) -> Any:
        """Return the file, opened at the current place."""
        stream = fsspec.open(self._url, "rb", **({} if self._has_ranges else {"block_size": 0})).open()
        if stream.size is not None:
            stream.seek(self._place)
            return stream
        left = self._place
        while left:
            block = stream.read(min(left, SKIPPED_BYTES))
            if not block:
                raise ShortReadError(f"the server sent {self._place - left} bytes, before {self._place}")
            left -= len(block)
        return stream


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
