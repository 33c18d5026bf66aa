"""Image-text pairs in a csv file."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from clip_negatives.dataset.columns import Columns, argument_of
from clip_negatives.dataset.images import (
    AHEAD,
    count_pixels,
    file_size,
    image_source,
    limited_batches,
    read_image,
    read_small_files,
)
from clip_negatives.dataset.pairs import Sample, file_stamp, fingerprint_of
from clip_negatives.dataset.urls import check_local_file, is_plain, unreadable
from clip_negatives.errors import DataError
from clip_negatives.printing import log
from clip_negatives.storage.digests import rows_digest
from clip_negatives.storage.limits import VARIABLE, limit
from clip_negatives.storage.source_files import DIGESTED_FILES, SourceFile, evenly_spread

if TYPE_CHECKING:
    import pandas as pd

ROWS = 2048  # rows per part: a process encodes a part before it writes
BLOCK = 65_536  # values of a column that are converted to Python strings at a time


class CsvPairs:
    """Image-text pairs of a csv file, one pair per row, read as open_clip reads ``--train-data``.

    As in open_clip, relative image paths start at the working directory, a missing text is "nan", and the used columns are in
    memory. Pairs of one group show the same item; a row without a group is a group of its own. `path` may be a URL for fsspec;
    images are local files.
    """

    def __init__(self, path: str | Path, columns: Columns | None = None) -> None:
        columns = columns or Columns()
        self.path = Path(path) if is_plain(str(path)) else str(path)
        table = _read(self.path, columns.separator)
        for name in ("image", "text", "group"):
            column = getattr(columns, name)
            if column is not None and column not in table.columns:
                names = [str(name) for name in table.columns]
                hint = _separator_hint(names[0], columns.separator) if len(names) == 1 else ""
                listed = ", ".join(map(repr, names))
                raise DataError(
                    f"{self.path} has no column {column!r} (columns: {listed}).{hint or f' Use {argument_of(name)}.'}"
                )
        if table.empty:
            raise DataError(f"{self.path} has no rows below its header. Add pairs.")
        self._images, self._texts = (_strings(table[column]) for column in (columns.image, columns.text))
        lengths = pc.utf8_length(self._texts)
        if (longest := pc.max(lengths).as_py()) > limit("characters"):
            fault = f"has {longest} characters, more than the limit of {limit('characters')}"
            repair = f"Close its quotation mark, or raise the limit: {VARIABLE}=characters=NUMBER."
            raise DataError(f"The text of row {pc.index(lengths, longest).as_py()} of {self.path} {fault}. {repair}")
        self._warn_of_texts(table[columns.text].isna(), columns.separator)
        groups = table[columns.group] if columns.group else None
        self._groups = None if groups is None else _strings(groups.astype(object).where(groups.notna(), ""))
        self.n_pairs = len(self._texts)

    def _warn_of_texts(self, is_missing: pd.Series[bool], separator: str) -> None:
        """Warn of missing texts, and of texts that seem to have swallowed rows."""
        if n := int(is_missing.sum()):
            first = int(is_missing.to_numpy().argmax())
            _log_once(
                f"{n} of {len(is_missing)} rows of {self.path} have no text, first row {first} (counted from 0 after the "
                "header). open_clip trains on the text nan for them."
            )
        swallowing = pc.and_(pc.match_substring(self._texts, "\n"), pc.match_substring(self._texts, separator))
        if n := pc.sum(swallowing).as_py():
            row = pc.index(swallowing, True).as_py()
            breaks = self._texts[row].as_py().count("\n")
            others = f" and of {n - 1} other rows" if n > 1 else ""
            where = f"row {row} of {self.path} (counted from 0 after the header){others}"
            _log_once(
                f"The text of {where} contains {breaks} line breaks and the separator {separator!r}, so it may have swallowed "
                "rows. Check its quotation marks."
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.n_pairs

    @functools.cached_property
    def keys(self) -> Sequence[str]:
        """Return the row numbers: unlike paths, they are unique."""
        return [str(row) for row in range(len(self))]

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """Return the text of each row."""
        return cast("list[str]", self._texts.to_pylist())

    @functools.cached_property
    def image_paths(self) -> Sequence[str]:
        """Return the image path of each row."""
        return cast("list[str]", self._images.to_pylist())

    @functools.cached_property
    def groups(self) -> Sequence[str] | None:
        """Return the group of each row, or None without a group column."""
        return None if self._groups is None else cast("list[str]", self._groups.to_pylist())

    def parts(self) -> Sequence[CsvPart]:
        """Return blocks of `ROWS` rows."""
        return [CsvPart(self, start, min(start + ROWS, len(self))) for start in range(0, len(self), ROWS)]

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images of rows start .. stop-1, RGB; a damaged image is a DataError with its file and row."""
        with ThreadPoolExecutor() as pool:
            for first in range(start, stop, AHEAD):
                rows = range(first, min(first + AHEAD, stop))
                pixels = dict(zip(rows, pool.map(lambda row: count_pixels(self._image_path(row)), rows), strict=True))
                for batch in limited_batches(rows, AHEAD, pixels.__getitem__):
                    yield from pool.map(self._image, batch)

    def small_images(self, rows: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of `rows`, shrunk to fit a square of `side` pixels; None for an image that cannot be read."""
        return read_small_files([self.image_paths[row] for row in rows], side)

    def fingerprint(self) -> str:
        """Return a digest of paths, texts, groups, image sizes in bytes and image modification times."""
        return fingerprint_of([part.digest() for part in self.parts()])

    def identity(self) -> dict[str, str]:
        """Return digests of the columns of images and texts, in order: unlike `fingerprint`, the same on another machine."""
        return {"images": rows_digest(self._images), "texts": rows_digest(self._texts)}

    def block(self, start: int, stop: int) -> dict[str, list[str] | None]:
        """Return the columns image, text and group of the rows."""
        columns = {"image": self._images, "text": self._texts, "group": self._groups}
        return {name: None if column is None else column[start:stop].to_pylist() for name, column in columns.items()}

    def _image_path(self, row: int) -> str:
        return str(self._images[row].as_py())

    def _image(self, row: int) -> Image.Image:
        path = self._image_path(row)
        return read_image(path, f"{path} (row {row} of {self.path}, counted from 0 after the header)")


@dataclass(frozen=True, slots=True)
class CsvPart:
    """Rows start .. stop-1 of a csv file; see `clip_negatives.dataset.pairs.Part`. No row is skipped."""

    source: CsvPairs
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Return the rows and the file."""
        return f"rows {self.start} .. {self.stop - 1} of {self.source.path}"

    def digest(self) -> str:
        """Return a digest of columns, row numbers, image sizes in bytes and image modification times."""
        sha256, columns = hashlib.sha256(f"{self.start} ".encode()), self.source.block(self.start, self.stop)
        for values in columns.values():
            sha256.update("\0".join(values or ()).encode())
            sha256.update(b"\1" if values is None else b"\2")
        for file in columns["image"] or ():
            sha256.update(file_stamp(file))
        return sha256.hexdigest()

    def source_files(self) -> list[SourceFile]:
        """Return size and digest of at most `DIGESTED_FILES` evenly spread images."""
        paths = self.source.block(self.start, self.stop)["image"] or []
        chosen = dict.fromkeys(paths[place] for place in evenly_spread(len(paths), DIGESTED_FILES))
        return [image_source(path) for path in chosen]

    def samples(self) -> Iterator[Sample]:
        """Read the rows; a damaged image is a DataError with its file and row: it would stop open_clip too."""
        columns = self.source.block(self.start, self.stop)
        paths, texts, groups = columns["image"] or [], columns["text"] or [], columns["group"]
        for row, image in enumerate(self.source.images(self.start, self.stop)):
            group = None if groups is None else groups[row]
            size = file_size(paths[row])
            yield Sample(str(self.start + row), texts[row], image, paths[row], group, image_bytes=-1 if size is None else size)


@functools.cache
def _log_once(message: str) -> None:
    """Log a message of a file that one command opens several times."""
    log(message)


def _read(path: Path | str, separator: str) -> pd.DataFrame:
    import pandas as pd

    if not separator:
        raise DataError(f"The csv separator is empty. Use {argument_of('separator')} with the character between columns.")
    check_local_file("csv file", str(path))
    try:
        return pd.read_csv(path, sep=separator)  # open_clip's own call, so that the rows are the same
    except (ValueError, re.error) as error:  # ValueError: also the errors of pandas
        if type(error) is ValueError and not isinstance(path, Path):  # fsspec: an unknown protocol, or no ranges
            raise unreadable("csv file", path, error) from error
        reason = " ".join(str(error).split())
        header = path.read_bytes().split(b"\n", 1)[0] if isinstance(path, Path) else b""
        hint = (
            _separator_hint(header.decode(errors="replace"), separator) or f" Correct the file or {argument_of('separator')}."
        )
        raise DataError(f"{path} is not a csv file separated by {separator!r}: {reason}.{hint}") from error
    except Exception as error:  # each file system of fsspec has its own errors
        raise unreadable("csv file", str(path), error) from error


def _strings(column: pd.Series[Any]) -> pa.ChunkedArray:
    """Return ``str`` of each value as an Arrow array, which takes far less memory than Python strings."""
    blocks = (column.iloc[start : start + BLOCK] for start in range(0, len(column), BLOCK))
    return pa.chunked_array([pa.array(map(str, block), pa.string()) for block in blocks], pa.string())


def _separator_hint(header: str, separator: str) -> str:
    """Return a hint, beginning with a space, if the header seems to have another separator; else ""."""
    likely = next((mark for mark in "\t,;" if mark in header and separator not in header), "")
    return likely and f" Its columns seem to be separated by {likely!r}, not by {separator!r}. Use {argument_of('separator')}."
