"""Clusters that another program assigned to the samples of tars: a table with key, tar, image cluster and text cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv

from clip_negatives.dataset.assignment_columns import AssignmentColumns, place_columns
from clip_negatives.dataset.assignment_files import files_of
from clip_negatives.dataset.assignment_values import labels_of, split_ids, strings_of
from clip_negatives.dataset.columns import argument_of
from clip_negatives.dataset.csv import found_separator
from clip_negatives.dataset.remote_parquet import remote_files
from clip_negatives.dataset.tar_names import tar_names
from clip_negatives.dataset.urls import is_plain, unreadable
from clip_negatives.errors import DataError
from clip_negatives.storage.digests import text_digest
from clip_negatives.storage.safe_reading import ROWS_PER_BYTE, one_line

ROWS_AT_ONCE = 2**18  # rows that are read at a time
MAX_CHARACTERS = 200  # of an error of pyarrow
BYTES_PER_ROW = 32  # of a csv file, whose number of rows is unknown before it is read
NUMBERS = {"image_label": pa.int64(), "text_label": pa.int64()}


@dataclass(frozen=True, slots=True)
class Assignments:
    """An open table of assignments.

    Attributes:
        location: the file or the folder.
        columns: the column of each role, see `assignment_columns.place_columns`.
        shard_pattern: path of the tar of a key, see `clip_negatives.dataset.tar_names`; None if a column names the tar.
    """

    location: str
    columns: dict[str, str]
    shard_pattern: str | None
    _data: Any

    @classmethod
    def open(cls, location: str, columns: AssignmentColumns) -> Assignments:
        """Open a table and find its columns; DataError if it cannot be read, or lacks a column."""
        files, kind = files_of(location)
        system = None if is_plain(location) else remote_files(location)[0]
        if system is not None:
            files = [fsspec.core.url_to_fs(file)[1] for file in files]
        base = location if Path(location).is_dir() else None
        separator = _separator(files[0], columns.separator) if kind == "csv" else ""
        with _errors(location):
            used = place_columns(columns, _dataset(files, system, base, separator, {}).schema.names, location)
            types = {name: NUMBERS.get(role, pa.string()) for role, name in used.items()}
            return cls(location, used, columns.shard_pattern, _dataset(files, system, base, separator, types))

    @property
    def likely_rows(self) -> int:
        """Return the number of rows; for csv files, an estimate from their size."""
        size = sum(int(file.size) for file in self._files())
        if isinstance(self._data.format, ds.CsvFileFormat):
            return size // BYTES_PER_ROW
        with _errors(self.location):
            rows = int(self._data.count_rows())
        if rows > ROWS_PER_BYTE * size:
            fault = f"has {size} bytes, but its metadata says {rows} rows"
            raise DataError(f"The table {self.location} {fault}. Write it again.")
        return rows

    @property
    def written(self) -> str | None:
        """Return when the newest file of the table was written, in ISO format; None if its file system does not tell."""
        times = [file.mtime for file in self._files() if file.mtime is not None]
        return max(times).isoformat(timespec="seconds") if times else None

    def _files(self) -> Sequence[Any]:
        """Return size and time of each file."""
        with _errors(self.location):
            found: Sequence[Any] = self._data.filesystem.get_file_info(self._data.files)
        return found

    def blocks(self) -> Iterator[pa.Table]:
        """Yield the rows in blocks, with the columns shard, key, image_label, text_label and, if known, text_digest.

        Raises:
            DataError: the table is damaged, or a value is missing or of the wrong type.
        """
        names, start = list(dict.fromkeys(self.columns.values())), 0
        reading = self._data.to_batches(columns=names, batch_size=ROWS_AT_ONCE, batch_readahead=1, fragment_readahead=1)
        while True:
            with _errors(self.location):
                batch = next(reading, None)
            if batch is None:
                return
            yield self._block(batch, f"{self.location}, rows {start} .. {start + batch.num_rows - 1}")
            start += batch.num_rows

    def _block(self, batch: pa.RecordBatch, place: str) -> pa.Table:
        values = {role: batch.column(name) for role, name in self.columns.items()}
        roles = [role for role in ("id", "shard", "key") if role in values]
        texts: dict[str, Any] = {role: strings_of(values[role], self.columns[role], place) for role in roles}
        if "id" in texts:
            texts |= split_ids(texts["id"], self.columns["id"], place)
        elif self.shard_pattern is not None:
            texts["shard"] = tar_names(self.shard_pattern, texts["key"])
        block = {name: texts[name] for name in ("shard", "key")}
        block |= {role: labels_of(values[role], self.columns[role], place) for role in NUMBERS}
        if "text" in values:
            captions = strings_of(values["text"], self.columns["text"], place, required=False).to_pylist()
            block["text_digest"] = pa.array((text_digest((caption or "").encode()) for caption in captions), pa.string())
        return pa.table(block)


def _separator(file: str, named: str | None) -> str:
    try:
        separator = named or found_separator(file)
    except ValueError as error:  # also the errors of pandas
        raise DataError(f"{file} is not a csv file: {one_line(error)}. Correct the file.") from error
    if len(separator) != 1:
        raise DataError(f"{argument_of('separator')} must be one character, got {separator!r}.")
    return separator


def _dataset(files: Sequence[str], system: Any, base: str | None, separator: str, types: dict[str, pa.DataType]) -> Any:
    """Open files as one table; `types` are those of the columns of csv files, so that leading zeros stay."""
    kind: Any = "parquet"
    if separator:
        parsing = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
        kind = ds.CsvFileFormat(parsing, convert_options=csv.ConvertOptions(column_types=types))
    # A folder such as image_label=3 names the value of a column of its files.
    partitioning = None if base is None else "hive"
    return ds.dataset(list(files), filesystem=system, format=kind, partitioning=partitioning, partition_base_dir=base)


@contextmanager
def _errors(location: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, pa.ArrowException):
            reason = " ".join(str(error).split()).rpartition("Invalid: ")[2][:MAX_CHARACTERS].rstrip(".")
            raise DataError(f"The table {location} cannot be read: {reason}. Correct it, or write it again.") from error
        raise unreadable("table", location, error) from error
