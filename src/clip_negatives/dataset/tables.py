"""Image-text pairs in the rows of a table: a csv, jsonl or parquet file, a folder of images, or a Hugging Face data set."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow.compute as pc
from PIL import Image

from clip_negatives.dataset.formats import Table
from clip_negatives.dataset.images import AHEAD, count_pixels, limited_batches, read_image, read_small_image
from clip_negatives.dataset.pairs import Sample, fingerprint_of
from clip_negatives.dataset.stored_images import ImageFiles, StoredImages
from clip_negatives.dataset.values import as_strings, check_values, is_missing
from clip_negatives.errors import DataError
from clip_negatives.printing import log
from clip_negatives.storage.digests import rows_digest
from clip_negatives.storage.limits import VARIABLE, limit
from clip_negatives.storage.sample_ids import MISSING_TEXT
from clip_negatives.storage.source_files import DIGESTED_FILES, SourceFile, evenly_spread

if TYPE_CHECKING:
    import pandas as pd

ROWS = 2048  # rows per part: a process encodes a part before it writes


class TablePairs:
    """Image-text pairs of a table, one pair per row, in the order of the rows.

    As in open_clip's csv data, relative image paths start at the working directory. A missing text is "nan". The used columns
    are in memory, except for images. A row without a group is a group of its own.

    Attributes:
        path: file, URL or name of the table, for messages.
        used: the column of the image, the text and, if there is one, the group.
        stored: the images.
    """

    def __init__(self, path: Path | str, table: Table, used: dict[str, Any], stored: StoredImages | None = None) -> None:
        self.path, self.used = path, used
        self._place = "counted from 0" if table.separator is None else "counted from 0 after the header"
        frame = table.read([name for role, name in used.items() if stored is None or role != "image"])
        if frame.empty:
            raise DataError(f"{path} has no rows{'' if table.separator is None else ' below its header'}. Add pairs.")
        check_values(path, frame)
        missing = is_missing(frame[used["text"]])
        self._texts = as_strings(frame[used["text"]], missing, MISSING_TEXT)
        self.stored = stored or ImageFiles(as_strings(frame[used["image"]], is_missing(frame[used["image"]]), MISSING_TEXT))
        groups = frame[used["group"]] if "group" in used else None
        self._groups = None if groups is None else as_strings(groups, is_missing(groups), "")
        self.n_pairs = len(self._texts)
        self._check_lengths()
        self._warn_of_texts(missing, table.separator)

    def _check_lengths(self) -> None:
        lengths = pc.utf8_length(self._texts)
        if (longest := pc.max(lengths).as_py()) > limit("characters"):
            fault = f"has {longest} characters, more than the limit of {limit('characters')}"
            repair = f"Close its quotation mark, or raise the limit: {VARIABLE}=characters=NUMBER."
            raise DataError(f"The text of row {pc.index(lengths, longest).as_py()} of {self.path} {fault}. {repair}")

    def _warn_of_texts(self, missing: pd.Series[bool], separator: str | None) -> None:
        """Warn of missing texts, and of texts of a csv file that seem to have swallowed rows."""
        if n := int(missing.sum()):
            first = int(missing.to_numpy().argmax())
            _log_once(
                f"{n} of {len(missing)} rows of {self.path} have no text, first row {first} ({self._place}). open_clip "
                "trains on the text nan for them."
            )
        if separator is None:
            return
        swallowing = pc.and_(pc.match_substring(self._texts, "\n"), pc.match_substring(self._texts, separator))
        if n := pc.sum(swallowing).as_py():
            row = pc.index(swallowing, True).as_py()
            breaks = self._texts[row].as_py().count("\n")
            others = f" and of {n - 1} other rows" if n > 1 else ""
            where = f"row {row} of {self.path} ({self._place}){others}"
            _log_once(
                f"The text of {where} contains {breaks} line breaks and the separator {separator!r}, so it may have swallowed "
                "rows. Check its quotation marks."
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.n_pairs

    @property
    def summary(self) -> str:
        """Return what is read: the used columns and the number of rows."""
        return f"Reading {', '.join(map(str, self.used.values()))} of {self.path}; {len(self):,} rows"

    @functools.cached_property
    def keys(self) -> Sequence[str]:
        """Return the row numbers: unlike paths, they are unique."""
        return [str(row) for row in range(len(self))]

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """Return the text of each row."""
        return cast("list[str]", self._texts.to_pylist())

    @functools.cached_property
    def image_paths(self) -> Sequence[str] | None:
        """Return the image path of each row; None if the images are in the table."""
        return None if self.stored.paths is None else cast("list[str]", self.stored.paths.to_pylist())

    @functools.cached_property
    def groups(self) -> Sequence[str] | None:
        """Return the group of each row, or None without a group column."""
        return None if self._groups is None else cast("list[str]", self._groups.to_pylist())

    def parts(self) -> Sequence[TablePart]:
        """Return blocks of `ROWS` rows."""
        return [TablePart(self, start, min(start + ROWS, len(self))) for start in range(0, len(self), ROWS)]

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images of rows start .. stop-1, RGB; a damaged image is a DataError with its file and row."""
        with ThreadPoolExecutor() as pool:
            for first in range(start, stop, AHEAD):
                rows = range(first, min(first + AHEAD, stop))
                pixels = dict(zip(rows, pool.map(lambda row: count_pixels(self.stored.file(row)), rows), strict=True))
                for batch in limited_batches(rows, AHEAD, pixels.__getitem__):
                    yield from pool.map(self._image, batch)

    def small_images(self, rows: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of `rows`, shrunk to fit a square of `side` pixels; None for an image that cannot be read."""
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(rows), AHEAD):
                ahead = rows[start : start + AHEAD]
                yield from pool.map(lambda row: read_small_image(self.stored.file(row), side), ahead)

    def fingerprint(self) -> str:
        """Return a digest of texts, groups and images; for image files, of their paths, sizes and modification times."""
        return fingerprint_of([part.digest() for part in self.parts()])

    def identity(self) -> dict[str, str]:
        """Return digests of the columns of images and texts, in order: unlike `fingerprint`, the same on another machine."""
        return {"images": self.stored.digest(), "texts": rows_digest(self._texts)}

    def block(self, start: int, stop: int) -> tuple[list[str], list[str] | None]:
        """Return the texts and the groups of the rows."""
        groups = None if self._groups is None else self._groups[start:stop].to_pylist()
        return self._texts[start:stop].to_pylist(), groups

    def _image(self, row: int) -> Image.Image:
        return read_image(self.stored.file(row), f"{self.stored.name(row)} (row {row} of {self.path}, {self._place})")


@dataclass(frozen=True, slots=True)
class TablePart:
    """Rows start .. stop-1 of a table; see `clip_negatives.dataset.pairs.Part`. No row is skipped."""

    source: TablePairs
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Return the rows and the table."""
        return f"rows {self.start} .. {self.stop - 1} of {self.source.path}"

    def digest(self) -> str:
        """Return a digest of texts, groups, row numbers and images; for image files, of path, size and modification time."""
        sha256 = hashlib.sha256(f"{self.start} ".encode())
        for values in self.source.block(self.start, self.stop):
            sha256.update("\0".join(values or ()).encode())
            sha256.update(b"\1" if values is None else b"\2")
        for row in range(self.start, self.stop):
            sha256.update(self.source.stored.stamp(row))
        return sha256.hexdigest()

    def source_files(self) -> list[SourceFile]:
        """Return size and digest of at most `DIGESTED_FILES` evenly spread images."""
        rows = evenly_spread(self.stop - self.start, DIGESTED_FILES)
        sources = (self.source.stored.source(self.start + row) for row in rows)
        return list({source.file: source for source in sources}.values())

    def samples(self) -> Iterator[Sample]:
        """Read the rows; a damaged image is a DataError with its file and row: it would stop open_clip too."""
        texts, groups = self.source.block(self.start, self.stop)
        stored = self.source.stored
        for place, image in enumerate(self.source.images(self.start, self.stop)):
            row = self.start + place
            path = None if stored.paths is None else stored.name(row)
            size = stored.size(row)
            group = None if groups is None else groups[place]
            yield Sample(str(row), texts[place], image, path, group, image_bytes=-1 if size is None else size)


@functools.cache
def _log_once(message: str) -> None:
    """Log a message of a table that one command opens several times."""
    log(message)
