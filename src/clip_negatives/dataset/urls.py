"""Shards by path or URL: plain paths of this machine, ``pipe:`` commands as webdataset has them, and what fsspec knows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import braceexpand
import fsspec
from webdataset import gopen

from clip_negatives.dataset.source import stamp
from clip_negatives.errors import DataError

CHANGES = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call that which differs once a file is written anew; each has some of them."""

BEYOND = 100
"""Times that a stream is read after its end."""


def expand_urls(urls: str) -> list[str]:
    """Return the shards that `urls` names, with braces expanded and lists split at ``::``, as open_clip does.

    Raises:
        DataError: a brace is not closed.
    """
    try:
        return [shard for part in urls.split("::") for shard in braceexpand.braceexpand(part)]
    except ValueError as error:  # braceexpand's own is one
        raise DataError(f"Expected shards such as shards/{{000..099}}.tar, got {urls}: {error}.") from error


def is_plain(url: str) -> bool:
    """Tell whether it is a path of this machine."""
    return "://" not in url and not url.startswith("pipe:")


def check_shards(shards: Sequence[str]) -> None:
    """Refuse shards of this machine that are not there, and the first of those that are elsewhere.

    To ask for all of those takes a while; each is asked for when it is read.

    Raises:
        DataError: one is not there or cannot be asked for.
    """
    for shard in shards:
        if is_plain(shard) and not Path(shard).is_file():
            raise _missing(shard)
    for shard in [shard for shard in shards if not is_plain(shard)][:1]:
        stamp_of(shard)


def stamp_of(url: str) -> bytes:
    """Return size and time of change of a shard, or what its file system has instead; nothing of a ``pipe:``.

    Raises:
        DataError: it is not there or cannot be asked for.
    """
    if is_plain(url):
        if not Path(url).is_file():
            raise _missing(url)
        return stamp(url)
    if url.startswith("pipe:"):
        return b""
    try:
        system, path = fsspec.core.url_to_fs(url)
        system.invalidate_cache(path)
        info = system.info(path)
    except FileNotFoundError as error:
        raise _missing(url) from error
    except Exception as error:  # Each file system of fsspec has errors of its own.
        raise unreadable("tar", url, error) from error
    return repr([info.get("size"), *(str(info[name]) for name in CHANGES if name in info)]).encode()


def open_url(url: str) -> IO[bytes]:
    """Open a shard for reading from its beginning to its end.

    Raises:
        DataError: it is not there or cannot be opened.
    """
    try:
        if is_plain(url):
            return Path(url).open("rb")
        opened: Any = gopen(url) if url.startswith("pipe:") else fsspec.open(url, "rb").open()
    except FileNotFoundError as error:
        raise _missing(url) from error
    except Exception as error:  # Each file system of fsspec has errors of its own.
        raise unreadable("tar", url, error) from error
    stream: IO[bytes] = opened
    return stream


class Reads:
    """Read a shard that is open from its beginning to its end, and nothing else.

    Args:
        stream: what `open_url` opened.
        url: of the shard.
    """

    def __init__(self, stream: IO[bytes], url: str) -> None:
        self._stream, self._url = stream, url
        self._beyond = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            DataError: they cannot be read.
            EOFError: they were asked for time and again after the end: `tarfile` looks for the end of a file that a header says
                to be of 2^60 bytes, block after block.
        """
        try:
            found = self._stream.read(size)
        except Exception as error:  # Each file system of fsspec has errors of its own.
            raise unreadable("tar", self._url, error) from error
        self._beyond = 0 if found else self._beyond + 1
        if self._beyond > BEYOND:
            raise EOFError
        return found


def unreadable(what: str, url: str, error: Exception) -> DataError:
    """Return the error of a file that is perhaps there but cannot be read, now or in this way."""
    reason = " ".join(" ".join(str(part) for part in error.args).split()) or type(error).__name__
    short = textwrap.shorten(reason, 200)
    return DataError(f"Expected to read the {what} {url}, got: {short}. See that it can be reached, and run the command again.")


def _missing(url: str) -> DataError:
    return DataError(f"Expected a tar file, got {url}, which is not there. Name tars that are there.")
