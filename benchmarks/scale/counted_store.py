"""An object store that counts its requests and bytes: ``counted://PATH`` is the file at PATH, read as s3fs reads an object."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

BLOCK_BYTES = 5 * 2**20  # read ahead; more in newer versions of s3fs

counts = Counter[str]()  # of the requests, and of the bytes read and written


def read_range(path: str, start: int | None, end: int | None) -> bytes:
    """Return a range of a file, and count it."""
    with Path(path).open("rb") as stream:
        stream.seek(start or 0)
        content = stream.read(-1 if end is None else end - (start or 0))
    counts.update({"requests": 1, "bytes_read": len(content)})
    return content


class CountedFile(AbstractBufferedFile):
    """An object that is read in blocks."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.path, start, end)


class CountedStore(AbstractFileSystem):
    """Objects on the local disk."""

    protocol = "counted"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name, size and time of an object."""
        path = self._strip_protocol(path)
        status = Path(path).stat()
        kind = "directory" if Path(path).is_dir() else "file"
        return {"name": path, "size": status.st_size, "type": kind, "mtime": status.st_mtime_ns}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return the objects in a folder."""
        found = [self.info(str(item)) for item in Path(self._strip_protocol(path)).iterdir()]
        return found if detail else [entry["name"] for entry in found]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return a range of an object."""
        return read_range(self._strip_protocol(path), start, end)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        """Upload an object."""
        content, target = Path(lpath).read_bytes(), Path(self._strip_protocol(rpath))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        counts.update({"requests": 1, "bytes_written": len(content)})

    def _open(self, path: str, mode: str = "rb", **options: Any) -> CountedFile:
        options["block_size"] = BLOCK_BYTES
        return CountedFile(self, path, mode, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("counted://").rstrip("/")


fsspec.register_implementation("counted", CountedStore, clobber=True)
