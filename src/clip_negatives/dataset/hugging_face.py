"""Image-text pairs in a ``datasets.Dataset`` of Hugging Face, in memory or on disk."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from clip_negatives.dataset.columns import Columns, argument_of, found_columns
from clip_negatives.dataset.formats import STREAMED_ROWS, StreamedColumns, Table, parquet_files
from clip_negatives.dataset.pairs import fingerprint_of
from clip_negatives.dataset.stored_images import EmbeddedImages, ImageFiles
from clip_negatives.dataset.tables import TablePairs
from clip_negatives.dataset.urls import shard_source, shard_stamp
from clip_negatives.errors import DataError, MissingPackageError
from clip_negatives.storage.sample_ids import MISSING_TEXT

if TYPE_CHECKING:
    import pandas as pd


def is_dataset(value: Any) -> bool:
    """Return whether a value is a ``datasets.Dataset`` or ``DatasetDict``; the package is not imported."""
    return hasattr(value, "column_names") and hasattr(value, "with_format")


def dataset_pairs(
    dataset: Any, columns: Columns | None = None, name: str = "the data set", *, images: bool = True
) -> TablePairs:
    """Return the pairs of a ``datasets.Dataset``, in its order; a caption that is a ``ClassLabel`` is the name of the class.

    Images are in a column of ``datasets.Image`` or bytes, which is not copied into memory, or in files named by a column of
    paths. `name` names the data set in messages. Without `images`, the data set may lack them, and none is opened.

    Raises:
        DataError: `dataset` has several splits, or a column is missing or ambiguous.
    """
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{name} is a stream, which has no rows by number. Load it without streaming=True.")
    if isinstance(dataset.column_names, dict):
        splits = ", ".join(dataset.column_names)
        raise DataError(f"{name} has several splits ({splits}). Name one, such as dataset[{next(iter(dataset))!r}].")
    features, plain = dataset.features, dataset.with_format(None)

    def read(names: Sequence[Any]) -> pd.DataFrame:
        table = plain.select_columns(list(names)).with_format("arrow")[:]
        frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True, ignore_metadata=True)
        for column in names:
            if (classes := getattr(features[column], "names", None)) is not None:  # a ClassLabel; -1 is no label
                frame[column] = [None if label is None or label < 0 else classes[label] for label in frame[column]]
        return frame

    def stream(column: str) -> Iterator[pa.ChunkedArray]:
        for block in plain.select_columns([column]).with_format("arrow").iter(STREAMED_ROWS):
            yield block[column]

    columns = columns or Columns()
    used, stored = found_columns(columns, list(dataset.column_names), name, images=images), None
    if (image := used.get("image")) is not None and getattr(features[image], "dtype", None) not in ("string", "large_string"):
        if images:
            stored = _images(plain, image, name)
        else:
            del used["image"]
    files = [str(entry["filename"]) for entry in getattr(dataset, "cache_files", ())]
    streamed = StreamedColumns(stream, files, str(getattr(dataset, "_fingerprint", "")))
    table = Table(list(dataset.column_names), read, streamed=streamed)
    return TablePairs(name, table, used, stored, shard_pattern=columns.shard_pattern, opens_images=images)


def saved_pairs(folder: str, columns: Columns | None = None, *, images: bool = True) -> TablePairs:
    """Return the pairs of a data set that ``Dataset.save_to_disk`` wrote; see `dataset_pairs`."""
    try:
        dataset = _package().load_from_disk(folder)
    except MissingPackageError:
        raise
    except Exception as error:  # the package does not document its errors
        raise DataError(f"{folder} cannot be read as a saved data set: {error}. Save it again with save_to_disk.") from error
    return dataset_pairs(dataset, columns, folder, images=images)


def parquet_pairs(location: str, columns: Columns | None = None) -> TablePairs:
    """Return the pairs of a parquet file, or a folder of them, with the images in a column.

    The package ``datasets`` copies them into its own cache (``HF_DATASETS_CACHE``), from where single rows can be read.
    """
    files, datasets = parquet_files(location), _package()
    # A cache for these very files: that of the package goes by name and time.
    stamp = fingerprint_of([f"{file} {shard_stamp(file)!r} {shard_source(file)}" for file in files])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f"clip-negatives-{stamp[:16]}"
    try:
        dataset = datasets.Dataset.from_parquet([glob.escape(file) for file in files], cache_dir=str(cache))
    except MissingPackageError:
        raise
    except Exception as error:  # the package does not document its errors
        raise DataError(f"{location} cannot be read as parquet with images: {error}. Correct the file.") from error
    return dataset_pairs(dataset, columns, location)


def _images(dataset: Any, column: str, name: str) -> EmbeddedImages | ImageFiles:
    """Return the images of a column, as files if it has only paths."""
    datasets = _package()
    try:
        undecoded = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # of pyarrow: the column has another type
        kind = dataset.features[column]
        fault = f"The column {column!r} of {name} has values of type {kind}, not images"
        raise DataError(f"{fault}. Name another column with {argument_of('image')}.") from error
    paths = _paths(undecoded, column)
    return EmbeddedImages(undecoded, column) if paths is None else ImageFiles(paths)


def _paths(undecoded: Any, column: str) -> pa.ChunkedArray | None:
    """Return the path of each image, or None if an image is in the column itself."""
    chunks: list[pa.Array] = []
    for block in undecoded.with_format("arrow").iter(STREAMED_ROWS):
        for images in block[column].chunks:
            if pc.struct_field(images, "bytes").null_count < len(images):
                return None
            chunks.append(pc.fill_null(pc.struct_field(images, "path"), MISSING_TEXT))
    return pa.chunked_array(chunks, pa.string())


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError.of("datasets", error) from error
    return datasets
