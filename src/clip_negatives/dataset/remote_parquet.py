"""Parquet files at URLs, for pyarrow; failed reads are repeated."""

from __future__ import annotations

from typing import Any

import fsspec
import pyarrow as pa
from pyarrow.fs import FSSpecHandler, PyFileSystem

from clip_negatives.dataset.web import RemoteStream, is_web


class _RepeatedReads(FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """A file system of fsspec that opens each file as a `RemoteStream`."""

    def open_input_file(self, path: str) -> pa.PythonFile:
        """Open a file for reading."""
        return pa.PythonFile(RemoteStream(self.fs.unstrip_protocol(path)), mode="r")


def remote_files(location: str) -> tuple[Any, Any]:
    """Return the file system of a URL, and a list of its file, or its folder."""
    system, path = fsspec.core.url_to_fs(location)
    is_folder = not is_web(location) and system.isdir(path)  # a web server would send the whole file
    return PyFileSystem(_RepeatedReads(system)), path if is_folder else [path]
