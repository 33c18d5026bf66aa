"""Recognise the format of a data set, and read the formats that are tables."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clip_negatives.advice import argument
from clip_negatives.dataset.csv import read_csv
from clip_negatives.dataset.kinds import COMPRESSED, ENDINGS, KINDS, METADATA, SAVED, SAVED_SPLITS
from clip_negatives.dataset.urls import check_local_file, check_reachable, expand_urls, is_plain, open_decompressed, unreadable
from clip_negatives.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

STREAMED_ROWS = 4096  # rows of a column that are read at a time


@dataclass(frozen=True, slots=True)
class StreamedColumns:
    """Columns that are read block by block: of parquet files, or of a data set of Hugging Face.

    Attributes:
        read: yields the values of a column, in order.
        files: the parquet files, or the files of the data set; none if it is in memory.
        fingerprint: fingerprint of a data set of Hugging Face.
    """

    read: Callable[[str], Iterator[pa.Array | pa.ChunkedArray]]
    files: Sequence[str] = ()
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: a file, a folder, or a data set of Hugging Face.

    Attributes:
        names: names of the columns.
        read: returns the named columns.
        separator: text between two columns of a csv file; None for other files.
        with_bytes: the columns that can hold images instead of paths.
        streamed: the columns, to read them block by block; None for csv and jsonl files.
        images_in: folder where relative paths of images start; None for the working directory.
    """

    names: list[Any]
    read: Callable[[Sequence[Any]], pd.DataFrame]
    separator: str | None = None
    with_bytes: frozenset[str] = frozenset()
    streamed: StreamedColumns | None = None
    images_in: Path | None = None


def kind_of(location: str | Path, dataset_type: str = "auto") -> str:
    """Return one of `KINDS`: `dataset_type` unless it is "auto", else by the ending or by the files of a folder."""
    option = argument("dataset_type")
    if dataset_type != "auto":
        if dataset_type not in KINDS:
            raise DataError(f"{option} must be auto, {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {dataset_type!r}.")
        return dataset_type
    name, path = str(location), Path(location)
    if is_plain(name) and path.is_dir():
        return _kind_of_folder(path)
    *_, before, ending = ["", *name.rsplit(".", 2)]
    kind = ENDINGS.get(before.lower() if ending.lower() in COMPRESSED else ending.lower())
    if kind is None or (kind == "webdataset" and ending != "tar"):
        known = ", ".join(f".{ending}" for ending in ENDINGS)
        raise DataError(f"{name} does not end in {known}, and is no folder. Correct it, or name the format with {option}.")
    return kind


def _kind_of_folder(folder: Path) -> str:
    if (folder / SAVED).is_file():
        return "datasets"
    if (folder / SAVED_SPLITS).is_file():
        splits = ", ".join(sorted(file.parent.name for file in folder.glob(f"*/{SAVED}")))
        raise DataError(f"{folder} is a data set with splits ({splits}). Name one, such as {folder}/train.")
    if any((folder / name).is_file() for name in METADATA):
        return "imagefolder"
    if any(folder.glob("*.parquet")) or metadata_of(folder):
        return "parquet"
    if any(folder.glob("*.tar")):
        raise DataError(f"{folder} is a folder of tars. Name the tars, such as '{folder}/{{00000..00099}}.tar'.")
    raise DataError(
        f"{folder} is a folder without {', '.join(METADATA)}, parquet files or a saved data set of Hugging Face. Add "
        "metadata.csv with the columns file_name and text."
    )


def metadata_of(folder: Path) -> list[Path]:
    """Return the tables of a folder that clip-retrieval wrote, in the order of their numbers."""
    return sorted(folder.glob("metadata/metadata_*.parquet"), key=natural)


def parquet_files(location: str) -> list[str]:
    """Return a parquet file, or those of a folder in the order of their numbers; DataError if some are in its subfolders."""
    folder = Path(location)
    if not folder.is_dir():
        return [location]
    if not (files := metadata_of(folder)):
        nested = next((file for file in sorted(folder.rglob("*.parquet")) if file.parent != folder), None)
        if nested is not None:
            raise DataError(f"{folder} has parquet files in folders of its own, such as {nested}. Move them into one folder.")
        files = sorted((file for file in folder.glob("*.parquet") if file.name[0] not in "._"), key=natural)
    return [str(file) for file in files]


def natural(file: Path | str) -> list[tuple[int, str]]:
    """Return a sort key that compares the numbers in names: ``part_2.npy`` stands before ``part_10.npy``."""
    parts = re.split(r"(\d+)", str(file))
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)]


def read_table(location: str, kind: str, separator: str | None = None, texts: Sequence[str] = ()) -> Table:
    """Return the table of a file, or of the metadata of a folder of images; DataError if it cannot be read.

    In a csv file, the columns `texts` are read as strings, so that leading zeros and long numbers stay.
    """
    path = Path(location) if is_plain(location) else location
    if kind == "parquet":
        return _parquet(location)
    if kind == "imagefolder":
        return _image_folder(Path(location), separator, texts)
    frame, separator = (_read_jsonl(path), None) if kind == "jsonl" else read_csv(path, separator, texts)
    return Table(list(frame.columns), lambda names: frame[list(names)], separator)


def _parquet(location: str) -> Table:
    from pyarrow.dataset import dataset
    from pyarrow.types import is_binary, is_large_binary, is_struct

    from clip_negatives.dataset.remote_parquet import remote_files

    if is_plain(location):
        if not Path(location).is_dir():
            check_local_file("parquet file", location)
        system, source = None, parquet_files(location)
    else:
        check_reachable("parquet file", location)
        system, source = remote_files(location)
    try:
        data = dataset(source, filesystem=system, format="parquet")
    except pa.ArrowInvalid as error:
        raise DataError(f"{location} is not parquet: {' '.join(str(error).split()).rstrip('.')}. Correct the file.") from error
    except Exception as error:  # of pyarrow, and of each file system
        raise unreadable("parquet file", location, error) from error

    def read(names: Sequence[Any]) -> pd.DataFrame:
        try:
            table = data.to_table(columns=list(names))
            # Integers with missing values stay integers, and a column that was an index stays a column.
            frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True, ignore_metadata=True)
        except Exception as error:
            raise unreadable("parquet file", location, error) from error
        return frame

    def stream(name: str) -> Iterator[pa.Array]:
        try:
            for batch in data.to_batches(columns=[name], batch_size=STREAMED_ROWS, batch_readahead=2, fragment_readahead=1):
                yield batch.column(0)
        except Exception as error:
            raise unreadable("parquet file", location, error) from error

    of_images = (is_struct, is_binary, is_large_binary)
    with_bytes = frozenset(field.name for field in data.schema if any(test(field.type) for test in of_images))
    return Table(list(data.schema.names), read, with_bytes=with_bytes, streamed=StreamedColumns(stream, data.files))


def _read_jsonl(path: Path | str) -> pd.DataFrame:
    """Return the objects of the lines; numbers stay as they are written."""
    import pandas as pd

    rows, number = list[dict[str, Any]](), 0
    try:
        with io.TextIOWrapper(open_decompressed(str(path), "jsonl file"), encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):  # noqa: B007 - the error names it
                if line.strip():
                    rows.append(dict(json.loads(line)))
    except DataError:
        raise
    except UnicodeDecodeError as error:
        place = f"{path} is not in UTF-8, after line {number} or in one of the next lines"
        raise DataError(f"{place}: {' '.join(str(error).split())}. Convert it.") from error
    except (ValueError, TypeError, RecursionError) as error:
        place = f"Line {number} of {path} is not a JSON object"
        raise DataError(f"{place}: {' '.join(str(error).split())}. Correct the file.") from error
    except Exception as error:  # each file system of fsspec has its own errors
        raise unreadable("jsonl file", str(path), error) from error
    frame: pd.DataFrame = pd.DataFrame(rows, dtype=object)
    return frame


def _image_folder(folder: Path, separator: str | None, texts: Sequence[str]) -> Table:
    """Return the metadata of a folder of images. Paths of images are relative to the folder."""
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    if not files:
        raise DataError(f"{folder} has no {' or '.join(METADATA)}. Add it, with the columns file_name and text.")
    if len(files) > 1:
        raise DataError(f"{folder} has {' and '.join(file.name for file in files)}. Keep one of them.")
    table = read_table(str(files[0]), ENDINGS[files[0].suffix[1:]], separator, texts)
    return Table(table.names, table.read, table.separator, images_in=folder)


def check_exists(location: str | Path, dataset_type: str = "auto", known_missing: Collection[str] = ()) -> None:
    """Raise DataError if the format of data is unknown, or if a local file of them is missing, without reading the files.

    The tars in `known_missing` may be missing.
    """
    kind = kind_of(location, dataset_type)
    if kind == "webdataset":
        for shard in expand_urls(str(location)):
            if shard not in known_missing:
                check_local_file("tar", shard)
    elif kind in ("csv", "jsonl") or (kind == "parquet" and not Path(location).is_dir()):
        check_local_file(f"{kind} file", str(location))
    elif not Path(location).is_dir():
        raise DataError(f"The folder {location} does not exist. Check its path.")
