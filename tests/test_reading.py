"""What does not fit is refused before it takes memory, whatever it says of itself."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clip_negatives.atomic import write_tensors
from clip_negatives.reading import read_columns, read_json, read_table, read_tensors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[1]", "no object"),
        ("{", "Expecting"),
        ('{"n": ' + "1" * 5000 + "}", "limit"),
        (" " * (2**20 + 1), "1048577 bytes, more than 1048576"),
        (b'{"a": "\xff"}', "decode"),
        (b'{"a": ["\\uD800"]}', "surrogates"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=words):
        read_json(file)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="no file"):
        read_json(tmp_path / "a.json")


def test_safetensors_of_a_gigantic_header(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", 99_000_000) + b"{" + b" " * 100)
    with pytest.raises(ValueError, match="header has 99000000 bytes, more than 1048576"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"b": torch.ones(2)}, "has no a"),
        ({"a": torch.ones(2, 2)}, r"a is float32 of shape \(2, 2\), not float32 of 1 dimensions"),
        ({"a": torch.ones(2, dtype=torch.float8_e4m3fn)}, "a is float8_e4m3fn"),
    ],
)
def test_tensors_of_another_kind(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    write_tensors(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=words):
        read_tensors(tmp_path / "a.safetensors", {"a": (("float32",), 1)})


def _invalid(n: int) -> pa.Array:
    """Return strings that are no UTF-8, which parquet does not look at."""
    return pa.Array.from_buffers(pa.string(), n, pa.array([b"\xff"] * n, pa.binary()).buffers())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"text": ["a"]}), "0 columns key"),
        (pa.table([pa.array(["a"]), pa.array(["b"])], names=["key", "key"]), "2 columns key"),
        (pa.table({"key": [1]}), "holds int64, not strings"),
        (pa.table({"key": pa.array(["a"]).dictionary_encode()}), "holds dictionary"),
        (pa.table({"key": ["a"], "text": [[1]]}), "column text holds list"),
        (pa.table({"key": ["a", "b"]}), "2 rows, not 1"),
        (pa.table({"key": pa.array([None], pa.string())}), "a value of its column key is missing"),
        (pa.table({"key": _invalid(1)}), "UTF8"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, table: pa.Table, words: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=words):
        read_table(tmp_path / "a.parquet", ("key",), ("text",), rows=1)


def test_rows_that_take_no_room(tmp_path: Path) -> None:
    """The same text a million times is a file of a kilobyte, and a billion times is no larger."""
    pq.write_table(pa.table({"key": ["a"] * 10**6, "label": pa.array([0] * 10**6, pa.int32())}), tmp_path / "a.parquet")
    for read in (lambda file: read_table(file, ("key",)), lambda file: read_columns(file, {"label": 1})):
        with pytest.raises(ValueError, match=r"claims 1000000 rows in \d+ bytes"):
            read(tmp_path / "a.parquet")


def test_only_known_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "junk": [{"deep": [1]}], "text": ["b"]}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", ("key",), ("text", "group")).to_pylist() == [{"key": "a", "text": "b"}]


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "a.parquet" / "part.parquet")
    with pytest.raises(ValueError, match="no file"):
        read_table(tmp_path / "a.parquet", ("key",))


@pytest.mark.parametrize(
    "column",
    [pa.array([3], pa.int32()), pa.array([-1], pa.int32()), pa.array([None], pa.int32()), pa.array([1]), pa.array(["1"])],
)
def test_labels_out_of_range(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"label": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"other numbers than 0 \.\. 2"):
        read_columns(tmp_path / "a.parquet", {"label": 3})
    pq.write_table(pa.table({"label": pa.array([2, 0], pa.int32())}), tmp_path / "a.parquet")
    assert read_columns(tmp_path / "a.parquet", {"label": 3}) == [[2, 0]]


def test_json_of_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": "\N{SNOWMAN}"}))
    assert read_json(tmp_path / "a.json") == {"a": "\N{SNOWMAN}"}
