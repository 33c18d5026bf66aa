"""Values of the columns of a table: which are missing, and all of them as texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clip_negatives.dataset.columns import argument_of
from clip_negatives.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 65_536  # values of a column that are converted to Python strings at a time

# Values that pandas takes as missing in a csv file; they are missing in every table.
MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
        *("NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)


def check_values(path: Path | str, frame: pd.DataFrame) -> None:
    """Raise DataError if values of a column are lists or objects."""
    from pandas.api.types import infer_dtype

    for name in frame.columns:
        if infer_dtype(frame[name], skipna=True) not in ("mixed", "mixed-integer", "bytes"):
            continue
        nested = (row for row, value in enumerate(frame[name]) if hasattr(value, "__len__") and not isinstance(value, str))
        if (row := next(nested, None)) is not None:
            kind = type(frame[name].iloc[row]).__name__
            raise DataError(
                f"The column {name!r} of {path} has a {kind} in row {row}, not a text. Write one pair per row, or name another "
                f"column with {argument_of('text')} or {argument_of('image')}."
            )


def is_missing(column: pd.Series[Any]) -> pd.Series[bool]:
    """Return which values of a column are missing: null, NaN or one of `MISSING`."""
    return column.isna() | column.isin(MISSING)


def as_strings(column: pd.Series[Any], missing: pd.Series[bool], replacement: str) -> pa.ChunkedArray:
    """Return ``str`` of each value, `replacement` for a missing one, as an Arrow array; Python strings take far more memory."""
    filled = column.astype(object).where(~missing, replacement) if missing.any() else column
    blocks = (filled.iloc[start : start + BLOCK] for start in range(0, len(filled), BLOCK))
    return pa.chunked_array([pa.array(map(str, block), pa.string()) for block in blocks], pa.string())


def identities(column: pd.Series[Any], path: Path | str) -> pa.ChunkedArray:
    """Return the values of a column that identifies samples; a missing value is a DataError."""
    missing = column.isna() | (column == "")
    if missing.any():
        row = int(missing.to_numpy().argmax())
        raise DataError(f"The column {column.name!r} of {path} is empty in row {row}. Fill it, or name another column.")
    return as_strings(column, missing, "")
