"""Safe readers of untrusted JSON, safetensors and parquet files.

The readers raise ValueError for a file that is damaged, too large or of the wrong type, before it fills the memory. They run no
code from a file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_negatives.storage.limits import limit

if TYPE_CHECKING:
    from torch import Tensor

TensorSpec = tuple[Sequence[str], int]  # allowed dtypes of a stored tensor, by torch's names, and its number of dimensions

SINGLE_THREAD_ROWS = 10_000  # up to this many rows, reading single-threaded is faster
ROWS_PER_BYTE = 16  # most rows per byte of a parquet file; only a malicious table of repeated values has more
BATCH_ROWS = 65_536  # rows that `read_batches` reads at a time


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, or raise ValueError if it is invalid or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json(file: Path, size_limit: str = "manifest_bytes") -> dict[str, Any]:
    """Return the object in a JSON file; `size_limit` names its size limit, see `clip_negatives.storage.limits`."""
    check_file(file, limit(size_limit))
    text = file.read_bytes()
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if b"\\ud" in text.lower():  # JSON can escape half of a surrogate pair, which is not valid text
        json.dumps(value, ensure_ascii=False).encode()  # raises a ValueError
    return value


def check_file(file: Path, max_bytes: int | None = None) -> None:
    """Raise ValueError if a file is too large or not a regular file (a pipe could block for ever), OSError if it is missing."""
    size = file.stat().st_size
    if not file.is_file():
        raise ValueError("not a regular file")
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{size} bytes, more than the limit of {max_bytes}")


def read_tensors(file: Path, specs: Mapping[str, TensorSpec] = {}) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, memory-mapped; `specs` describe tensors that it must have."""
    return read_tensors_and_metadata(file, specs)[0]


def read_tensors_and_metadata(file: Path, specs: Mapping[str, TensorSpec] = {}) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; see `read_tensors`."""
    from safetensors import SafetensorError, safe_open

    check_file(file)
    with file.open("rb") as stream:
        size_field = stream.read(8)
    if len(size_field) == 8 and (size := struct.unpack("<Q", size_field)[0]) > limit("header_bytes"):
        raise ValueError(f"a header of {size} bytes, more than the limit of {limit('header_bytes')}")
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
            metadata = dict(stored.metadata() or {})
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    for name, (dtypes, ndim) in specs.items():
        if name not in tensors:
            raise ValueError(f"no tensor {name}")
        dtype, shape = str(tensors[name].dtype).removeprefix("torch."), tuple(tensors[name].shape)
        if dtype not in dtypes or len(shape) != ndim:
            raise ValueError(f"tensor {name} is {dtype} of shape {shape}, not {' or '.join(dtypes)} of {ndim} dimensions")
    return tensors, metadata


def open_table(
    file: Path, texts: Sequence[str], optional: Sequence[str] = (), labels: Sequence[str] = (), integers: Sequence[str] = ()
) -> pq.ParquetFile:
    """Open a parquet file and check its columns.

    It must have the columns `texts` (strings) and `labels` (int32). `optional` (strings) and `integers` (int64) may be missing.
    """
    check_file(file)
    with _value_errors():
        table = pq.ParquetFile(file)
        rows, size, schema = table.metadata.num_rows, file.stat().st_size, table.schema_arrow
    if rows > ROWS_PER_BYTE * size:
        raise ValueError(f"{size} bytes, but its metadata says {rows} rows")
    for name in (*texts, *optional, *labels, *integers):
        count = schema.names.count(name)
        if count > 1 or (count == 0 and name not in (*optional, *integers)):
            raise ValueError(f"{count} columns {name} instead of 1")
        types = [pa.string(), pa.large_string()]
        if name in (*labels, *integers):
            types = [pa.int32() if name in labels else pa.int64()]
        if count and schema.field(name).type not in types:
            raise ValueError(f"column {name} has type {schema.field(name).type}, not {types[0]}")
    return table


def read_table(
    file: Path,
    texts: Sequence[str],
    optional: Sequence[str] = (),
    labels: Mapping[str, int] = {},
    integers: Sequence[str] = (),
) -> pa.Table:
    """Return columns of a parquet file, in memory, after checking their values; see `open_table`.

    `labels` maps each column of labels to its number of clusters. Optional columns may have missing values.
    """
    source = open_table(file, texts, optional, tuple(labels), integers)
    names = [name for name in source.schema_arrow.names if name in (*texts, *optional, *labels, *integers)]
    n_rows = source.metadata.num_rows
    with _value_errors():
        table = source.read(columns=names, use_threads=n_rows > SINGLE_THREAD_ROWS)
    if table.num_rows != n_rows:
        raise ValueError(f"{table.num_rows} rows, but its metadata says {n_rows}")
    _check_values(table, (*texts, *labels))
    for name, n_clusters in labels.items():
        least, most = pc.min_max(table[name]).as_py().values()
        if n_rows and not 0 <= least <= most < n_clusters:
            raise ValueError(f"column {name} has labels outside 0 .. {n_clusters - 1}")
    return table


def read_batches(table: pq.ParquetFile, columns: Sequence[str], required: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield columns of an open parquet file, `BATCH_ROWS` rows at a time; damage or a missing value raises ValueError."""
    rows = 0
    with _value_errors():
        for batch in table.iter_batches(BATCH_ROWS, columns=list(columns)):
            _check_values(batch, required)
            yield batch
            rows += batch.num_rows
    if rows != table.metadata.num_rows:
        raise ValueError(f"{rows} rows, but its metadata says {table.metadata.num_rows}")


def _check_values(table: pa.Table | pa.RecordBatch, required: Sequence[str]) -> None:
    """Reject invalid UTF-8, which parquet does not check, and missing values of required columns."""
    with _value_errors():
        table.validate(full=True)
    for name in required:
        if table.column(name).null_count:
            raise ValueError(f"column {name} has missing values")


@contextmanager
def _value_errors() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow raises OSError for a damaged page
        raise ValueError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """Return the message of an error on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]
