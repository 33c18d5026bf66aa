"""Files that the user names as an output: an older file is replaced only if this package wrote it, or if it is empty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.paths import TOOL, output_path
from clip_negatives.storage.safe_reading import read_json

PARQUET_MARK = {"clip_negatives.tool": TOOL}  # metadata of each parquet file that is an output


def check_output_file(path: str | Path) -> Path:
    """Return the absolute path of an output file, with links resolved.

    Raises:
        ArtifactError: the path is a URL, a link to nothing, a folder, a pipe or a device, or a file that this package did not
            write.
    """
    file = output_path(path)
    if file.is_dir():
        raise ArtifactError(f"{file} is a folder, not a file. Name a file in it.")
    if file.exists() and not (file.is_file() and (file.stat().st_size == 0 or _is_ours(file))):
        raise ArtifactError(f"{file} exists, and it is not a file of {TOOL}. Move it, or name another path.")
    return file


def write_json_output(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with our mark to an output file, see `check_output_file`."""
    with replaced_file(check_output_file(path)) as file:
        file.write_text(json_text(content) + "\n")


def json_text(content: Mapping[str, Any]) -> str:
    """Return a JSON object with our mark."""
    return json.dumps({"tool": TOOL, **content}, indent=2)


def _is_ours(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            is_parquet = stream.read(4) == b"PAR1"
        if not is_parquet:
            return bool(read_json(file, "json_bytes")["tool"] == TOOL)
        import pyarrow.parquet as pq  # takes half a second

        metadata = pq.read_schema(file).metadata or {}
        return all(metadata.get(name.encode()) == value.encode() for name, value in PARQUET_MARK.items())
    except (OSError, ValueError, KeyError):  # ValueError: also the errors of pyarrow
        return False
