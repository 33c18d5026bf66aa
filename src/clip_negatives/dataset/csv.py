"""Pairs listed in a csv file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from clip_negatives.dataset.source import AHEAD, read_image, read_small_files, stamp
from clip_negatives.errors import DataError


class CsvPairs:
    """Read pairs as open_clip reads ``--train-data`` of csv: one row a pair.

    Relative paths of images start at the working directory, not at the csv file, as they do in open_clip.
    A row without a text has the text "nan", as it has when open_clip trains on it. A row without a group is a group of
    its own.

    Args:
        path: the csv file.
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

        self.path = Path(path)
        if not separator:
            raise DataError("Expected what stands between columns after --csv-separator, got nothing.")
        if not self.path.is_file():
            raise DataError(f"Expected a csv file, got {self.path}, which is not there. Name the file with the training data.")
        try:
            # The very call of open_clip, so that row i here is row i there.
            table = pd.read_csv(self.path, sep=separator)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, ValueError) as error:
            reason = " ".join(str(error).split())
            hint = _separator_hint(self.path.read_bytes().split(b"\n", 1)[0].decode(errors="replace"), separator)
            raise DataError(f"Expected a csv file separated by {separator!r}, got {self.path}: {reason}.{hint}") from error
        for column in filter(None, (image_column, text_column, group_column)):
            if column not in table.columns:
                raise DataError(_no_column(self.path, column, [str(name) for name in table.columns], separator))
        if table.empty:
            raise DataError(f"Expected at least one pair in {self.path}, got a header only.")
        self.image_paths: Sequence[str] = [str(value) for value in table[image_column]]
        self.texts: Sequence[str] = [str(value) for value in table[text_column]]
        # An empty field says that nothing is known about the row, not that all such rows show the same.
        self.groups: Sequence[str] | None = (
            ["" if pd.isna(value) else str(value) for value in table[group_column]] if group_column else None
        )
        # Paths can repeat (several texts of one image), rows cannot.
        self.keys: Sequence[str] = [str(row) for row in range(len(table))]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images of rows start .. stop-1 in RGB.

        Raises:
            DataError: a file is missing or no image; the message names it and its row.
        """
        with ThreadPoolExecutor() as pool:
            for first in range(start, stop, AHEAD):
                yield from pool.map(self._image, range(first, min(first + AHEAD, stop)))

    def small_images(self, index: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of some rows, to fit a square of `side` pixels; None for one that cannot be read."""
        return read_small_files([self.image_paths[row] for row in index], side)

    def fingerprint(self) -> str:
        """Return a digest of paths, texts, groups and the size and time of change of each image, taken once."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        whole = hashlib.sha256()
        for column in (self.image_paths, self.texts, self.groups or ()):
            whole.update("\0".join(column).encode())
            whole.update(b"\1")
        for file in self.image_paths:
            whole.update(stamp(file))
        return whole.hexdigest()

    def _image(self, row: int) -> Image.Image:
        path = self.image_paths[row]
        return read_image(path, f"{path} (row {row} of {self.path}, counted from 0 after the header)")


def _no_column(path: Path, column: str, columns: list[str], separator: str) -> str:
    hint = _separator_hint(columns[0], separator) if len(columns) == 1 else ""
    return f"Expected a column {column!r} in {path}, got {', '.join(map(repr, columns))}.{hint}"


def _separator_hint(header: str, separator: str) -> str:
    """Say what seems to separate the columns of a header that lacks the separator."""
    other = next((mark for mark in ("\t", ",", ";") if mark in header), None)
    if separator in header or other is None:
        return ""
    return f" The columns seem to be separated by {other!r}, not by {separator!r}: say --csv-separator."
