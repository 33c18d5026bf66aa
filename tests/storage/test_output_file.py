"""A file that the user names as an output replaces only an empty file or one of this package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.output_file import PARQUET_MARK, check_output_file, write_json_output
from clip_negatives.storage.ownership import replaced_file


def test_own_and_empty_files_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    file.touch()
    for number in (1, 2):
        write_json_output(file, {"number": number})
    assert json.loads(file.read_text()) == {"tool": "clip-negatives", "number": 2}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(PARQUET_MARK), tmp_path / "pairs.parquet")
    assert check_output_file(tmp_path / "pairs.parquet") == tmp_path / "pairs.parquet"


def _parquet(file: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), file)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_text("filepath\ttitle\na.png\ta\n"),
        lambda file: file.write_text("{}"),
        lambda file: file.write_text('{"tool": "another"}'),
        lambda file: file.write_text("[1]"),
        lambda file: file.write_bytes(b"PAR1 and no more"),
        lambda file: file.write_bytes(b"\xff\xfe"),
        _parquet,
    ],
)
def test_a_file_of_another_program_stays(tmp_path: Path, write: object) -> None:
    file = tmp_path / "precious"
    write(file)  # type: ignore[operator]
    before = file.read_bytes()
    (tmp_path / "link").symlink_to(file)
    for path in (file, tmp_path / "link"):
        with pytest.raises(ArtifactError, match=r"precious exists, and it is not a file of clip-negatives\. Move it, or name"):
            write_json_output(path, {})
    assert file.read_bytes() == before


def test_a_pipe_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="is not a file of clip-negatives"):
        check_output_file(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="is a pipe or a device, not a file"), replaced_file(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_stays(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder, not a file"):
        check_output_file(tmp_path)
