"""Read files that others may have written: what does not fit is a ValueError, before it takes memory, and nothing is run.

Who calls these says in an error of `clip_negatives.errors` which file it is, and what to do.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_negatives.limits import limit

if TYPE_CHECKING:
    from torch import Tensor

Kind = tuple[Sequence[str], int]
"""What a tensor may be: names of dtypes, as torch has them, and the number of dimensions."""

FEW = 10_000
"""Rows that are read sooner than threads are woken for them."""

ROWS_A_BYTE = 16
"""Rows that a byte of a parquet file may stand for: rows that are not all the same take far more room."""


def parse_json(text: str | bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is no JSON, or nested so deep that nobody meant it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(file: Path, at_most: str = "manifest_bytes") -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        file: the file.
        at_most: the limit of its size, by the name that it has in `clip_negatives.limits`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, not JSON, or holds something else.
    """
    check_file(file, limit(at_most))
    text = file.read_bytes()
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    if b"\\ud" in text.lower():  # half a letter, which JSON can say and no text may hold
        json.dumps(found, ensure_ascii=False).encode()
    return found


def check_file(file: Path, at_most: int | None = None) -> None:
    """Refuse a file that is none (a pipe without a writer would hold the reader up for ever) or too large.

    Raises:
        OSError: it is not there.
        ValueError: it is refused.
    """
    size = file.stat().st_size
    if not file.is_file():
        raise ValueError("it is no file")
    if at_most is not None and size > at_most:
        raise ValueError(f"it has {size} bytes, more than {at_most}")


def read_tensors(file: Path, kinds: Mapping[str, Kind] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, memory-mapped.

    Args:
        file: the file.
        kinds: what each must be; None takes what is there.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, its header is too large, or a tensor is missing or of another kind.
    """
    return read_tensors_and_metadata(file, kinds)[0]


def read_tensors_and_metadata(file: Path, kinds: Mapping[str, Kind] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Do what `read_tensors` does, and return the metadata of the file as well; raises as it does."""
    from safetensors import SafetensorError, safe_open

    check_file(file)
    with file.open("rb") as stream:
        start = stream.read(8)
    if len(start) == 8 and (size := struct.unpack("<Q", start)[0]) > limit("header_bytes"):
        raise ValueError(f"its header has {size} bytes, more than {limit('header_bytes')}")
    try:
        with safe_open(file, framework="pt") as stored:
            found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
            metadata = dict(stored.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    for name, (dtypes, ndim) in (kinds or {}).items():
        if name not in found:
            raise ValueError(f"it has no {name}")
        dtype, shape = str(found[name].dtype).removeprefix("torch."), tuple(found[name].shape)
        if dtype not in dtypes or len(shape) != ndim:
            raise ValueError(f"{name} is {dtype} of shape {shape}, not {' or '.join(dtypes)} of {ndim} dimensions")
    return found, metadata


def open_table(file: Path, strings: Sequence[str], optional: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a parquet file with columns of strings.

    Args:
        file: the file.
        strings: columns that it must have.
        optional: columns that are strings where it has them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, lacks a column, or has something else in one.
    """
    table = _open(file)
    schema = table.schema_arrow
    for name in (*strings, *optional):
        there = schema.get_all_field_indices(name)
        if len(there) > 1 or (name in strings and not there):
            raise ValueError(f"it has {len(there)} columns {name}, not 1")
        if there and schema.field(there[0]).type not in (pa.string(), pa.large_string()):
            raise ValueError(f"its column {name} holds {schema.field(there[0]).type}, not strings")
    return table


def _open(file: Path) -> pq.ParquetFile:
    """Open a parquet file, once it claims no more rows than it may."""
    check_file(file)
    try:
        table = pq.ParquetFile(file)
        rows, size = table.metadata.num_rows, file.stat().st_size
        table.schema_arrow  # noqa: B018  (which is read from the file now)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(one_line(error)) from error
    if rows > ROWS_A_BYTE * size:
        raise ValueError(f"it claims {rows} rows in {size} bytes")
    return table


def read_table(file: Path, strings: Sequence[str], optional: Sequence[str] = (), rows: int | None = None) -> pa.Table:
    """Return the columns of `open_table`, those that are there, in memory.

    Args:
        file: the file.
        strings: columns that it must have.
        optional: columns that are strings where it has them.
        rows: how many rows it must have; None takes any number.

    Raises:
        OSError: it cannot be read.
        ValueError: as `open_table`, or it has another number of rows, or what is no text in a column.
    """
    table = open_table(file, strings, optional)
    if rows is not None and table.metadata.num_rows != rows:  # before a page says to repeat one text a billion times
        raise ValueError(f"it has {table.metadata.num_rows} rows, not {rows}")
    names = [name for name in table.schema_arrow.names if name in (*strings, *optional)]
    try:
        found = table.read(columns=names, use_threads=table.metadata.num_rows > FEW)
    except (pa.ArrowException, OSError) as error:  # of a damaged page
        raise ValueError(one_line(error)) from error
    if found.num_rows != table.metadata.num_rows:
        raise ValueError(f"it has {found.num_rows} rows where it claims {table.metadata.num_rows}")
    check_texts(found, strings)
    return found


def read_columns(file: Path, bounds: Mapping[str, int]) -> list[list[int]]:
    """Return columns of int32, each of which is 0 .. its bound - 1.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, lacks a column, or has something else in one.
    """
    table = _open(file)
    try:
        if any(table.schema_arrow.names.count(name) != 1 for name in bounds):
            raise ValueError(f"it does not have each column of {', '.join(bounds)} once")
        found = table.read(columns=list(bounds), use_threads=table.metadata.num_rows > FEW)
        found.validate(full=True)
        for name, bound in bounds.items():
            column = found[name]
            numbers = column.type == pa.int32() and not column.null_count
            least, most = pc.min_max(column).as_py().values() if numbers else (-1, -1)
            if len(column) and not 0 <= least <= most < bound:
                raise ValueError(f"its column {name} holds other numbers than 0 .. {bound - 1}")
        return [found[name].to_pylist() for name in bounds]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(one_line(error)) from error


def check_texts(table: pa.Table | pa.RecordBatch, required: Sequence[str]) -> None:
    """Refuse strings that are not UTF-8, which parquet may hold, and empty places in columns that need a value.

    Raises:
        ValueError: there are such.
    """
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(one_line(error)) from error
    for name in required:
        if table.column(name).null_count:
            raise ValueError(f"a value of its column {name} is missing")


def one_line(error: Exception) -> str:
    """Return what an error says as one line, shortened."""
    return " ".join(str(error).split())[:300]
