"""Checks of the values in a table of assignments: keys, tars and cluster numbers."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from clip_negatives.advice import argument
from clip_negatives.errors import DataError

ID = r"(?s)^(?P<shard>.*?\.(?:tar|tgz)(?:\.\w+)?)[/:#]+(?P<key>.+)$"


def strings_of(column: pa.Array, name: str, place: str, *, required: bool = True) -> pa.Array:
    """Return the values of a column of texts; DataError if they are not texts or, if they are `required`, one is missing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        repair = "Write texts: of the number 120034, the leading zeros of the key 000120034 are lost."
        raise DataError(f"The column {name!r} of {place} has the type {column.type}. {repair}")
    column = column.cast(pa.string())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"The column {name!r} of {place} is not in UTF-8. Write it again.") from error
    if required and (column.null_count or pc.any(pc.equal(column, "")).as_py()):
        raise DataError(f"The column {name!r} of {place} has missing values. Fill them, or leave their rows out.")
    return column


def labels_of(column: pa.Array, name: str, place: str) -> pa.Array:
    """Return the values of a column of cluster numbers as int64; DataError if they are not whole numbers, or one is missing."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_integer(column.type):
        raise DataError(f"The column {name!r} of {place} has the type {column.type}. Write cluster numbers as integers.")
    if column.null_count:
        raise DataError(f"The column {name!r} of {place} has missing values. Leave out the rows without a cluster.")
    return column.cast(pa.int64())


def split_ids(ids: pa.Array, name: str, place: str) -> dict[str, pa.Array]:
    """Return "shard" and "key" of ids such as ``00012.tar/000120034``; DataError if an id has another form."""
    parts = pc.extract_regex(ids, ID)
    if parts.null_count:
        first = ids[pc.index(parts.is_null(), True).as_py()].as_py()
        fault = f"The column {name!r} of {place} has {first!r}, which does not name a tar and a key"
        repair = f"Write ids such as 00012.tar/000120034, or name two columns with {argument('key')} and {argument('shard')}."
        raise DataError(f"{fault}. {repair}")
    return {"shard": parts.field("shard"), "key": parts.field("key")}
