"""Data files by address: a local path, a URL of fsspec or, for tars, a ``pipe:`` command as in webdataset."""

from __future__ import annotations

import hashlib
import io
import stat
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import braceexpand
import fsspec
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.implementations.local import LocalFileSystem

from clip_negatives.dataset.command import PIPE, CommandError, FailedCommandError, open_command
from clip_negatives.dataset.pairs import file_stamp
from clip_negatives.dataset.web import RemoteStream, read_bytes, repeated
from clip_negatives.errors import DataError, MissingShardError
from clip_negatives.storage.source_files import SourceFile

# Metadata keys, by file system, whose value changes when a file is rewritten.
CHANGES = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "updated", "created")

END_BYTES = 65_536  # of each end of a shard that its digest covers
READ_BYTES = 2**20  # of a shard that are read at a time for its digest
MAX_READS_AFTER_END = 100  # empty reads at the end of a stream before the shard counts as damaged


def expand_urls(urls: str) -> list[str]:
    """Return the shards in `urls`, by open_clip's rules for ``::`` and braces; an unclosed brace is a DataError."""
    try:
        return [shard for part in urls.split("::") for shard in braceexpand.braceexpand(part)]
    except ValueError as error:  # also the class of braceexpand's own error
        raise DataError(f"{urls} is not a list of shards: {error}. Write for example shards/{{000..099}}.tar.") from error


def is_plain(url: str) -> bool:
    """Return whether a URL is a local path."""
    return "://" not in url and not url.startswith(PIPE)


def check_local_file(kind: str, url: str) -> None:
    """Raise DataError if a local file, by its path or its ``file:`` URL, is missing or not a regular file.

    Opening a pipe can block for ever, and a device can have no end. `kind` names the file in the error ("tar", "csv file").
    """
    scheme = url.partition("://")[0]
    if is_plain(url) or scheme in ("file", "local"):
        try:
            mode = Path(url if is_plain(url) else LocalFileSystem._strip_protocol(url)).stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte in the name
            raise missing(kind, url) from error
        except OSError as error:
            raise unreadable(kind, url, error) from error
        if not stat.S_ISREG(mode):
            raise DataError(f"The {kind} {url} is not a regular file. Check its path.")


def check_reachable(kind: str, url: str) -> None:
    """Raise DataError if a file, at any URL of fsspec, is missing, unreachable or not a regular file."""
    check_local_file(kind, url)
    with reading_from(url, kind):
        system, path = fsspec.core.url_to_fs(url)
        repeated(url, lambda: system.info(path))


def check_shards(shards: Sequence[str]) -> None:
    """Raise DataError if a local shard or the first remote shard is missing; other remote shards are checked on reading."""
    remote = [shard for shard in shards if not is_plain(shard)]
    for shard in [*filter(is_plain, shards), *remote[:1]]:
        shard_size(shard)


def shard_stamp(url: str) -> bytes:
    """Return size and modification time of a shard, or similar metadata of its file system.

    The whole shard is read, and its SHA-256 returned, for ``pipe:`` and if the file system does not tell when a file changed.
    MissingShardError if it cannot be read.
    """
    check_local_file("tar", url)
    if is_plain(url):
        with reading_from(url):
            return file_stamp(url)
    if not url.startswith(PIPE):
        info = _info(url)
        if changes := [str(info[name]) for name in CHANGES if info.get(name)]:
            return repr([info.get("size"), *changes]).encode()
    sha256 = hashlib.sha256()
    try:
        _read_all(url, "tar", sha256)
    except CommandError:
        sha256.update(b"failed")  # the output before the failure is used
    return sha256.digest()


def content_digest(url: str, kind: str = "npy file") -> str:
    """Return the SHA-256 of a whole file, in hexadecimal."""
    sha256 = hashlib.sha256()
    _read_all(url, kind, sha256)
    return sha256.hexdigest()


def _read_all(url: str, kind: str, sha256: hashlib._Hash) -> None:
    """Add the content of a file to a digest."""
    with open_url(url, kind) as opened:
        stream = ShardStream(opened, url)
        while block := stream.read(READ_BYTES):
            sha256.update(block)


def shard_size(url: str) -> int | None:
    """Return the size of a shard in bytes; None for ``pipe:`` and for file systems that do not tell it."""
    if url.startswith(PIPE):
        return None
    check_local_file("tar", url)
    if is_plain(url):
        with reading_from(url):
            return Path(url).stat().st_size
    size = _info(url).get("size")
    return size if isinstance(size, int) else None


def shard_digest(url: str, size: int) -> str:
    """Return the SHA-256 of the first and the last `END_BYTES` of a shard of this size; "" if it has no random access."""
    first, last = min(size, END_BYTES), max(0, min(size - END_BYTES, END_BYTES))
    with reading_from(url):
        if is_plain(url):
            with Path(url).open("rb") as stream:
                content = stream.read(first)
                stream.seek(size - last)
                content += stream.read(last)
        else:
            system, path = fsspec.core.url_to_fs(url)
            ends = [(0, first), (size - last, size)] if last else [(0, first)]
            content = b"".join(repeated(url, partial(read_bytes, system, path, start, stop)) for start, stop in ends)
    # A web server without ranges sends the whole file.
    return hashlib.sha256(content).hexdigest() if len(content) == first + last else ""


def shard_source(url: str) -> SourceFile:
    """Return size and digest of a shard."""
    size = shard_size(url)
    return SourceFile(url, size, "" if size is None else shard_digest(url, size))


def open_url(url: str, kind: str = "tar") -> IO[bytes]:
    """Open a file for sequential reading, or raise DataError if it is missing, unreachable or not a regular file."""
    check_local_file(kind, url)
    with reading_from(url, kind):
        if is_plain(url):
            return Path(url).open("rb")
        if url.startswith(PIPE):
            return cast("IO[bytes]", open_command(url))
        return cast("IO[bytes]", RemoteStream(url))


def open_decompressed(url: str, kind: str) -> IO[bytes]:
    """Open a file like `open_url`, decompressed by its ending such as ``.gz``."""
    opened = open_url(url, kind)
    stream = io.BufferedReader(opened, READ_BYTES) if isinstance(opened, io.RawIOBase) else opened
    compression = get_compression(url, "infer")
    return stream if compression is None else cast("IO[bytes]", compr[compression](stream, mode="rb"))


class ShardStream:
    """A shard, opened by `open_url`, whose errors are DataErrors; a command that fails after some output is a CommandError.

    Attributes:
        n_read: number of bytes read.
    """

    def __init__(self, stream: IO[bytes], url: str) -> None:
        self._stream, self._url, self._reads_after_end, self.n_read = stream, url, 0, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; DataError if they cannot be read, EOFError after too many reads at the end."""
        try:
            with reading_from(self._url):
                block = self._stream.read(size)
        except DataError as error:
            if self.n_read and isinstance(error.__cause__, FailedCommandError):
                raise CommandError(str(error.__cause__)) from error
            raise
        self.n_read += len(block)
        self._reads_after_end = 0 if block else self._reads_after_end + 1
        # If a header claims 2^60 bytes, `tarfile` keeps reading after the end, block by block.
        if self._reads_after_end > MAX_READS_AFTER_END:
            raise EOFError
        return block

    def finish(self) -> None:
        """Read the rest of a command's output after the end of the tar; CommandError if the command failed."""
        if self._url.startswith(PIPE):
            while self.read(READ_BYTES):
                pass


class MeasuredStream(ShardStream):
    """A shard whose size and digest become known while it is read, for shards such as ``pipe:`` that do not tell their size."""

    def __init__(self, stream: IO[bytes], url: str) -> None:
        super().__init__(stream, url)
        self._first = self._last = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; see `ShardStream.read`."""
        block = super().read(size)
        self._first += block[: END_BYTES - len(self._first)]
        self._last = (self._last + block)[-END_BYTES:]
        return block

    def source(self) -> SourceFile:
        """Read the rest of the shard, and return its size and digest, see `shard_source`."""
        while self.read(READ_BYTES):
            pass
        n_last = max(0, min(self.n_read - END_BYTES, END_BYTES))
        content = self._first + self._last[len(self._last) - n_last :]
        return SourceFile(self._url, self.n_read, hashlib.sha256(content).hexdigest())


def missing(kind: str, url: str) -> DataError:
    """Return the error for a file ("tar" or "csv file") that does not exist."""
    return _error_of(kind)(f"The {kind} {url} does not exist. Check its path.")


def unreadable(kind: str, url: str, error: Exception) -> DataError:
    """Return the error for a file ("tar" or "csv file") that cannot be read."""
    reason = textwrap.shorten(getattr(error, "strerror", None) or str(error), 200) or type(error).__name__
    if isinstance(error, EOFError):  # of compressed files
        repair = "It seems to be cut off. Copy it again"
    elif isinstance(error, FailedCommandError):
        repair = "Run the command after pipe: by itself, and correct it"
    else:
        repair = "Check that it is reachable, and run the command again"
    return _error_of(kind)(f"The {kind} {url} cannot be read: {reason.rstrip('.')}. {repair}.")


def _error_of(kind: str) -> type[DataError]:
    return MissingShardError if kind == "tar" else DataError


def _info(url: str) -> dict[str, Any]:
    """Return what the file system of a remote shard tells about it now."""
    with reading_from(url):
        system, path = fsspec.core.url_to_fs(url)
        system.invalidate_cache(path)
        return dict(repeated(url, lambda: system.info(path)))


@contextmanager
def reading_from(url: str, kind: str = "tar") -> Iterator[None]:
    """Turn an error of a file system in the block into a DataError, or a MissingShardError for a tar."""
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error.__cause__, Exception):  # fsspec raises FileNotFoundError for every answer of a web server
            raise unreadable(kind, url, error.__cause__) from error
        raise missing(kind, url) from error
    except DataError:
        raise
    except Exception as error:  # each file system of fsspec has its own errors
        raise unreadable(kind, url, error) from error
