"""An object store that counts its requests and bytes: ``counted://PATH`` is the file at PATH, read as s3fs reads an object."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

BLOCK_BYTES = 5 * 2**20  # read ahead; more in newer versions of s3fs

counts = Counter[str]()  # of the requests, of those that write or list, and of the bytes read and written


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
        counts.update({"requests": 1})
        status = Path(path).stat()
        kind = "directory" if Path(path).is_dir() else "file"
        return {"name": path, "size": status.st_size, "type": kind, "mtime": status.st_mtime_ns}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return the objects in a folder."""
        found = [self.info(str(item)) for item in Path(self._strip_protocol(path)).iterdir()]
        counts.update({"requests": 1 - len(found), "writes": 1})  # one answer lists all
        return found if detail else [entry["name"] for entry in found]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return a range of an object."""
        return read_range(self._strip_protocol(path), start, end)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        """Upload an object."""
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object; with the mode "create", only if it does not exist."""
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        counts.update({"requests": 1, "writes": 1, "bytes_written": len(value)})
        with target.open("xb" if mode == "create" else "wb") as stream:
            stream.write(value)

    def get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        """Download an object."""
        Path(lpath).write_bytes(self.cat_file(rpath))

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        counts.update({"requests": 1})
        Path(self._strip_protocol(path)).unlink()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> CountedFile:
        options["block_size"] = BLOCK_BYTES
        return CountedFile(self, path, mode, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("counted://").rstrip("/")


fsspec.register_implementation("counted", CountedStore, clobber=True)
