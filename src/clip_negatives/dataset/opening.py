"""Open a data set of any supported kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clip_negatives.dataset.columns import Columns, argument_of, found_columns
from clip_negatives.dataset.formats import kind_of, read_table
from clip_negatives.errors import DataError

if TYPE_CHECKING:
    from clip_negatives.dataset.tables import TablePairs
    from clip_negatives.dataset.tars import TarPairs

KEYS = ("key", "shard", "shard_pattern")  # fields of `Columns` for the keys of samples


def open_pairs(
    location: str | Path,
    columns: Columns | None = None,
    *,
    dataset_type: str = "auto",
    images: bool = True,
    may_lack_tars: bool = False,
) -> TablePairs | TarPairs:
    """Open image-text pairs.

    Args:
        location: a csv, jsonl or parquet file, a folder of images with ``metadata.csv``, ``.jsonl`` or ``.parquet``, a folder
            of parquet files, a folder of ``datasets.Dataset.save_to_disk``, or tars in webdataset format (braces and ``::`` as
            in open_clip). Files may be URLs of fsspec, and tars ``pipe:`` commands.
        columns: the columns; unnamed ones are detected by common names.
        dataset_type: one of `clip_negatives.dataset.kinds.KINDS`; "auto": by the ending, or by the files of a folder.
        images: whether images are needed. If not, a table may lack them, and none is opened.
        may_lack_tars: leave the check that tars exist to the code that reads them.

    Raises:
        DataError: the data cannot be read, or a column is missing or ambiguous.
        MissingPackageError: a data set of Hugging Face, or images in parquet, need the package datasets.
    """
    if kind_of(location, dataset_type) == "webdataset":
        from clip_negatives.dataset.tars import TarPairs  # imports torch

        columns = columns or Columns()
        if named := [name for name in KEYS if getattr(columns, name) is not None]:
            raise DataError(f"{location} are tars, which have keys of their own. Omit {argument_of(named[0])}.")
        return TarPairs(str(location), group_field=columns.group, text_field=columns.text, may_lack_tars=may_lack_tars)
    return open_table(location, columns, dataset_type=dataset_type, images=images)


def open_table(
    location: str | Path, columns: Columns | None = None, *, dataset_type: str = "auto", images: bool = True
) -> TablePairs:
    """Open image-text pairs of any kind but tars; see `open_pairs`."""
    from clip_negatives.dataset import hugging_face
    from clip_negatives.dataset.tables import TablePairs

    kind, columns = kind_of(location, dataset_type), columns or Columns()
    if kind == "datasets":
        return hugging_face.saved_pairs(str(location), columns, images=images)
    table = read_table(
        str(location), kind, columns.separator, [name for name in (columns.key, columns.shard, columns.group) if name]
    )
    used = found_columns(columns, table.names, str(location), images=images)
    if used.get("image") in table.with_bytes:
        if images:
            return hugging_face.parquet_pairs(str(location), columns)
        del used["image"]
    return TablePairs(str(location), table, used, shard_pattern=columns.shard_pattern, opens_images=images)
