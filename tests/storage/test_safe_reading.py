"""Invalid files are rejected before they fill the memory."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.safe_reading import read_json, read_table, read_tensors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[1]", "not a JSON object"),
        ("{", "Expecting"),
        ('{"n": ' + "1" * 5000 + "}", "limit"),
        (" " * (2**25 + 1), "33554433 bytes, more than the limit of 33554432"),
        (b'{"a": "\xff"}', "decode"),
        (b'{"a": ["\\uD800"]}', "surrogates"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message):
        read_json(file)


def test_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "a.json")


def test_safetensors_of_a_gigantic_header(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", 99_000_000) + b"{" + b" " * 100)
    with pytest.raises(ValueError, match="header of 99000000 bytes, more than the limit of 1048576"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"b": torch.ones(2)}, "no tensor a"),
        ({"a": torch.ones(2, 2)}, r"a is float32 of shape \(2, 2\), not float32 of 1 dimensions"),
        ({"a": torch.ones(2, dtype=torch.float8_e4m3fn)}, "a is float8_e4m3fn"),
    ],
)
def test_tensors_of_another_kind(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    write_tensors(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "a.safetensors", {"a": (("float32",), 1)})


def _invalid(n: int) -> pa.Array:
    """Return strings that are not UTF-8, which parquet does not check."""
    return pa.Array.from_buffers(pa.string(), n, pa.array([b"\xff"] * n, pa.binary()).buffers())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"text": ["a"]}), "0 columns key"),
        (pa.table([pa.array(["a"]), pa.array(["b"])], names=["key", "key"]), "2 columns key"),
        (pa.table({"key": [1]}), "has type int64, not string"),
        (pa.table({"key": pa.array(["a"]).dictionary_encode()}), "has type dictionary"),
        (pa.table({"key": ["a"], "text": [[1]]}), "column text has type list"),
        (pa.table({"key": pa.array([None], pa.string())}), "column key has missing values"),
        (pa.table({"key": _invalid(1)}), "UTF8"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.parquet", ("key",), ("text",))


def test_rows_that_take_no_room(tmp_path: Path) -> None:
    """The same text a million times is a file of a kilobyte, and a billion times is no larger."""
    pq.write_table(pa.table({"key": ["a"] * 10**6, "label": pa.array([0] * 10**6, pa.int32())}), tmp_path / "a.parquet")
    for read in (lambda file: read_table(file, ("key",)), lambda file: read_table(file, (), labels={"label": 1})):
        with pytest.raises(ValueError, match=r"bytes, but its metadata says 1000000 rows"):
            read(tmp_path / "a.parquet")


def test_only_known_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "junk": [{"deep": [1]}], "text": ["b"]}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", ("key",), ("text", "group")).to_pylist() == [{"key": "a", "text": "b"}]


def test_folder_instead_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "a.parquet" / "part.parquet")
    with pytest.raises(ValueError, match="not a regular file"):
        read_table(tmp_path / "a.parquet", ("key",))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([3], pa.int32()), r"labels outside 0 \.\. 2"),
        (pa.array([-1], pa.int32()), r"labels outside 0 \.\. 2"),
        (pa.array([None], pa.int32()), "column label has missing values"),
        (pa.array([1]), "has type int64, not int32"),
        (pa.array(["1"]), "has type string, not int32"),
    ],
)
def test_invalid_labels(tmp_path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"label": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.parquet", (), labels={"label": 3})


@pytest.mark.parametrize("labels", [[2, 0], []])
def test_labels(tmp_path: Path, labels: list[int]) -> None:
    pq.write_table(pa.table({"label": pa.array(labels, pa.int32())}), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", (), labels={"label": 3})["label"].to_pylist() == labels


def test_json_of_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": "\N{SNOWMAN}"}))
    assert read_json(tmp_path / "a.json") == {"a": "\N{SNOWMAN}"}
