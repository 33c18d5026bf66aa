"""Pairs listed in a csv file."""

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

from clip_negatives.dataset.source import AHEAD, Sample, fingerprint_of, in_turn, pixels_of, read_image, read_small_files, stamp
from clip_negatives.dataset.urls import is_plain, unreadable
from clip_negatives.errors import DataError
from clip_negatives.limits import VARIABLE, limit

if TYPE_CHECKING:
    import pandas as pd

ROWS = 2048
"""Rows of a part: what one process encodes before it writes."""

BLOCK = 65_536
"""Values of a column that are Python's strings at once while a file is read."""


class CsvPairs:
    """Read pairs as open_clip reads ``--train-data`` of csv: one row a pair.

    Relative paths of images start at the working directory, not at the csv file, as they do in open_clip.
    A row without a text has the text "nan", as it has when open_clip trains on it. A row without a group is a group of
    its own. The columns that are named are held in memory as a whole, as open_clip holds them.

    Args:
        path: the csv file, or a URL of it that fsspec knows; images are files.
        image_column: column with the path of the image.
        text_column: column with the text.
        separator: what stands between columns.
        group_column: column that says which pairs show the same; None if there is none.

    Raises:
        DataError: the file is missing or empty, or has no such column.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_column: str = "filepath",
        text_column: str = "title",
        separator: str = "\t",
        group_column: str | None = None,
    ) -> None:
        import pandas as pd

        self.path = Path(path) if is_plain(str(path)) else str(path)
        if not separator:
            raise DataError("Expected what stands between columns after --csv-separator, got nothing.")
        if isinstance(self.path, Path) and not self.path.is_file():
            raise DataError(f"Expected a csv file, got {self.path}, which is not there. Name the file with the training data.")
        try:
            # The very call of open_clip, so that row i here is row i there.
            table = pd.read_csv(self.path, sep=separator)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError, re.error) as error:
            reason = " ".join(str(error).split())
            header = self.path.read_bytes().split(b"\n", 1)[0] if isinstance(self.path, Path) else b""
            hint = _separator_hint(header.decode(errors="replace"), separator)
            raise DataError(f"Expected a csv file separated by {separator!r}, got {self.path}: {reason}.{hint}") from error
        except Exception as error:  # Each file system of fsspec has errors of its own.
            raise unreadable("csv file", str(self.path), error) from error
        for column in filter(None, (image_column, text_column, group_column)):
            if column not in table.columns:
                raise DataError(_no_column(self.path, column, [str(name) for name in table.columns], separator))
        if table.empty:
            raise DataError(f"Expected at least one pair in {self.path}, got a header only.")
        self._images, self._texts = (_strings(table[column]) for column in (image_column, text_column))
        letters = pc.utf8_length(self._texts)
        if (longest := pc.max(letters).as_py()) > limit("letters"):
            raise DataError(
                f"Expected texts of at most {limit('letters')} letters in {self.path}, got {longest} in row "
                f"{pc.index(letters, longest).as_py()}, counted from 0 after the header. Look for a quote that is not "
                f"closed, or raise the limit: {VARIABLE}=letters=NUMBER."
            )
        # An empty field says that nothing is known about the row, not that all such rows show the same.
        groups = table[group_column] if group_column else None
        self._groups = None if groups is None else _strings(groups.astype(object).where(groups.notna(), ""))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._texts)

    @property
    def n_pairs(self) -> int:
        """Return the number of rows."""
        return len(self)

    @functools.cached_property
    def keys(self) -> Sequence[str]:
        """Return the numbers of the rows: paths can repeat (several texts of one image), rows cannot."""
        return [str(row) for row in range(len(self))]

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """Return the text of each row."""
        return cast("list[str]", self._texts.to_pylist())

    @functools.cached_property
    def image_paths(self) -> Sequence[str]:
        """Return the file of each image."""
        return cast("list[str]", self._images.to_pylist())

    @functools.cached_property
    def groups(self) -> Sequence[str] | None:
        """Return what each row shows, or None where no column says it."""
        return None if self._groups is None else cast("list[str]", self._groups.to_pylist())

    def parts(self) -> Sequence[CsvPart]:
        """Return blocks of `ROWS` rows."""
        return [CsvPart(self, start, min(start + ROWS, len(self))) for start in range(0, len(self), ROWS)]

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images of rows start .. stop-1 in RGB.

        Raises:
            DataError: a file is missing or no image; the message names it and its row.
        """
        with ThreadPoolExecutor() as pool:
            for first in range(start, stop, AHEAD):
                rows = range(first, min(first + AHEAD, stop))
                pixels = dict(zip(rows, pool.map(self._pixels, rows), strict=True))
                for some in in_turn(rows, AHEAD, pixels.__getitem__):
                    yield from pool.map(self._image, some)

    def small_images(self, index: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of some rows, to fit a square of `side` pixels; None for one that cannot be read."""
        return read_small_files([self.image_paths[row] for row in index], side)

    def fingerprint(self) -> str:
        """Return a digest of paths, texts, groups and the size and time of change of each image, taken once."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        return fingerprint_of([part.digest() for part in self.parts()])

    def block(self, start: int, stop: int) -> dict[str, list[str] | None]:
        """Return the columns image, text and group of rows start .. stop-1."""
        columns = {"image": self._images, "text": self._texts, "group": self._groups}
        return {name: None if column is None else column[start:stop].to_pylist() for name, column in columns.items()}

    def _pixels(self, row: int) -> int:
        return pixels_of(str(self._images[row].as_py()))

    def _image(self, row: int) -> Image.Image:
        path = str(self._images[row].as_py())
        return read_image(path, f"{path} (row {row} of {self.path}, counted from 0 after the header)")


@dataclass(frozen=True, slots=True)
class CsvPart:
    """Rows start .. stop-1 of a csv file; see `clip_negatives.dataset.source.Part`. No row is left out: one number a row."""

    source: CsvPairs
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Return the rows and the file."""
        return f"rows {self.start} .. {self.stop - 1} of {self.source.path}"

    def digest(self) -> str:
        """Return a digest of the columns, of the numbers of the rows and of size and time of change of each image."""
        whole, columns = hashlib.sha256(f"{self.start} ".encode()), self.source.block(self.start, self.stop)
        for values in columns.values():
            whole.update("\0".join(values or ()).encode())
            whole.update(b"\1" if values is None else b"\2")
        for file in columns["image"] or ():
            whole.update(stamp(file))
        return whole.hexdigest()

    def samples(self) -> Iterator[Sample]:
        """Read the rows.

        Raises:
            DataError: a file is missing or no image; the message names it and its row. open_clip would stop there too.
        """
        columns = self.source.block(self.start, self.stop)
        paths, texts, groups = columns["image"] or [], columns["text"] or [], columns["group"]
        for place, image in enumerate(self.source.images(self.start, self.stop)):
            group = None if groups is None else groups[place]
            yield Sample(str(self.start + place), texts[place], image, paths[place], group)


def _strings(column: pd.Series[Any]) -> pa.ChunkedArray:
    """Return what ``str`` makes of each value, in blocks: Arrow's strings take a fraction of what Python's do."""
    blocks = [
        pa.array([str(value) for value in column.iloc[start : start + BLOCK]], pa.string())
        for start in range(0, len(column), BLOCK)
    ]
    return pa.chunked_array(blocks, pa.string())


def _no_column(path: Path | str, column: str, columns: list[str], separator: str) -> str:
    hint = _separator_hint(columns[0], separator) if len(columns) == 1 else ""
    return f"Expected a column {column!r} in {path}, got {', '.join(map(repr, columns))}.{hint}"


def _separator_hint(header: str, separator: str) -> str:
    """Say what seems to separate the columns of a header that lacks the separator."""
    other = next((mark for mark in ("\t", ",", ";") if mark in header), None)
    if separator in header or other is None:
        return ""
    return f" The columns seem to be separated by {other!r}, not by {separator!r}: say --csv-separator."
