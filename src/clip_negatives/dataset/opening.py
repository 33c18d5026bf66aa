"""Open a data set of any supported kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clip_negatives.advice import argument
from clip_negatives.dataset.columns import Columns
from clip_negatives.dataset.urls import check_local_file, expand_urls
from clip_negatives.errors import DataError

if TYPE_CHECKING:
    from clip_negatives.dataset.csv import CsvPairs
    from clip_negatives.dataset.tars import TarPairs


def open_pairs(location: str | Path, columns: Columns | None = None, *, dataset_type: str = "auto") -> CsvPairs | TarPairs:
    """Open training data: a ``.csv`` or ``.tsv`` file, or tars in webdataset format (braces and ``::`` as in open_clip).

    `dataset_type` is "auto", "csv" or "webdataset"; `columns` None is `Columns()`.
    """
    if _kind_of(location, dataset_type) == "csv":
        from clip_negatives.dataset.csv import CsvPairs

        return CsvPairs(location, columns)
    from clip_negatives.dataset.tars import TarPairs  # imports torch

    return TarPairs(str(location), group_field=columns.group if columns else None)


def check_location(location: str | Path, *, dataset_type: str = "auto") -> None:
    """Raise DataError if training data are of an unknown kind, or if a local file of them is missing; nothing is read."""
    if _kind_of(location, dataset_type) == "csv":
        check_local_file("csv file", str(location))
    else:
        for shard in expand_urls(str(location)):
            check_local_file("tar", shard)


def _kind_of(location: str | Path, dataset_type: str) -> str:
    """Return "csv" or "webdataset"."""
    ending = str(location).rsplit(".", 1)[-1]
    kind = {"csv": "csv", "tsv": "csv", "tar": "webdataset"}.get(ending) if dataset_type == "auto" else dataset_type
    if kind not in ("csv", "webdataset"):
        option = argument("dataset_type")
        raise DataError(f"{location} does not end in .csv, .tsv or .tar. Set {option} to csv or webdataset.")
    return kind
