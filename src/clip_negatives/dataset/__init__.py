"""Image-text data as clusters are made of it: keys, texts, groups, and images one after another."""

from __future__ import annotations

from pathlib import Path

from clip_negatives.dataset.csv import CsvPairs
from clip_negatives.dataset.source import Broken, PairSource, Part, Sample
from clip_negatives.dataset.tars import TarPairs
from clip_negatives.errors import DataError

__all__ = ["Broken", "CsvPairs", "PairSource", "Part", "Sample", "TarPairs", "open_pairs"]


def open_pairs(
    location: str | Path,
    *,
    dataset_type: str = "auto",
    image_column: str = "filepath",
    text_column: str = "title",
    separator: str = "\t",
    group_column: str | None = None,
) -> CsvPairs | TarPairs:
    """Open training data by the rules of open_clip: csv and tsv by their ending, tars as webdataset.

    Args:
        location: a csv file, or tars (braces and ``::`` as in open_clip; paths, URLs that fsspec knows, or ``pipe:``).
        dataset_type: "auto", "csv" or "webdataset".
        image_column: for csv, see `CsvPairs`.
        text_column: for csv.
        separator: for csv.
        group_column: column of the csv, or field of the tars' json.

    Raises:
        DataError: the data cannot be used as given.
    """
    ending = str(location).rsplit(".", 1)[-1]
    if dataset_type == "csv" or (dataset_type == "auto" and ending in ("csv", "tsv")):
        return CsvPairs(
            location, image_column=image_column, text_column=text_column, separator=separator, group_column=group_column
        )
    if dataset_type == "webdataset" or (dataset_type == "auto" and ending == "tar"):
        return TarPairs(str(location), group_field=group_column)
    raise DataError(f"Expected training data that end in .csv, .tsv or .tar, got {location}. Else say --dataset-type.")
