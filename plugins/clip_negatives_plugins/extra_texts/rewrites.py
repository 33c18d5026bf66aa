"""Lists of further captions, read from a file and compared with the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clip_negatives.dataset.formats import kind_of, read_table
from clip_negatives.errors import DataError


def captions_of(file: str, own: str, column: str, captions: Sequence[str]) -> list[list[str]]:
    """Return the lists in a jsonl, parquet or csv file; DataError if its own captions are not `captions`, in this order."""
    table = read_table(file, kind_of(file), None, [own, column])
    if missing := [name for name in (own, column) if name not in table.names]:
        columns = ", ".join(map(str, table.names))
        raise DataError(f"{file} has no column {missing[0]!r} (columns: {columns}). Name the columns with own= and column=.")
    frame = table.read([own, column])
    wrong = next((row for row, pair in enumerate(zip(frame[own], captions, strict=False)) if pair[0] != pair[1]), None)
    if wrong is not None or len(frame) != len(captions):
        fault = f"{len(frame)} rows for {len(captions)} samples" if wrong is None else f"row {wrong} has another own caption"
        raise DataError(f"{file} is not of these data: {fault}. Write one row per sample, in the order of the data.")
    return [_texts(value, f"Row {row} of {file}", column) for row, value in enumerate(frame[column])]


def _texts(value: Any, place: str, column: str) -> list[str]:
    try:
        texts = json.loads(value) if isinstance(value, str) else list(value)
    except (TypeError, ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place} needs a list of texts in the column {column!r}, got {str(value)[:80]!r}. Correct the file.")
    return texts
