"""Image-text pairs in the rows of a table: a csv, jsonl or parquet file, a folder of images, or a Hugging Face data set."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from clip_negatives.dataset.columns import argument_of
from clip_negatives.dataset.formats import Table
from clip_negatives.dataset.images import AHEAD, in_slices, limited_batches, read_image, read_or_count, read_small_image
from clip_negatives.dataset.pairs import fingerprint_of
from clip_negatives.dataset.stored_images import ImageFiles, StoredImages, within
from clip_negatives.dataset.table_parts import TablePart
from clip_negatives.dataset.tar_names import tar_names
from clip_negatives.dataset.values import as_strings, check_values, identities, is_missing
from clip_negatives.distributed.environment import reading_threads
from clip_negatives.errors import DataError
from clip_negatives.printing import log
from clip_negatives.storage.digests import rows_digest
from clip_negatives.storage.limits import VARIABLE, limit
from clip_negatives.storage.sample_ids import MISSING_TEXT

if TYPE_CHECKING:
    import pandas as pd

ROWS = 2048  # rows per part: a process encodes a part before it writes
UNOPENED_ROWS = 65_536  # rows per part of a table whose images are not opened


class TablePairs:
    """Image-text pairs of a table, one pair per row, in the order of the rows.

    As in open_clip's csv data, relative image paths start at the working directory. A missing text is "nan". The used columns
    are in memory, except for images. A row without a group is a group of its own.

    Attributes:
        path: file, URL or name of the table, for messages.
        names: all columns.
        used: the columns of the text and, if known, of image, group, key and tar.
        streamed: the columns that can be read block by block, None if the format allows no such reading.
        opens_images: whether the parts open the images.
    """

    def __init__(
        self,
        path: Path | str,
        table: Table,
        used: dict[str, Any],
        stored: StoredImages | None = None,
        *,
        shard_pattern: str | None = None,
        opens_images: bool = True,
    ) -> None:
        if not opens_images and "key" in used:  # then the images are in tars, and their paths are unused
            used = {role: name for role, name in used.items() if role != "image"}
        self.names = table.names
        self.path, self.used, self.streamed, self.opens_images = path, used, table.streamed, opens_images
        self._place = "counted from 0" if table.separator is None else "counted from 0 after the header"
        frame = table.read(list(dict.fromkeys(name for role, name in used.items() if stored is None or role != "image")))
        if frame.empty:
            raise DataError(f"{path} has no rows{'' if table.separator is None else ' below its header'}. Add pairs.")
        check_values(path, frame)
        columns = {role: frame[name] for role, name in used.items() if name in frame}
        text_is_missing = is_missing(columns["text"])
        names_tars = "shard" in used or shard_pattern is not None
        self._texts = as_strings(columns["text"], text_is_missing, "" if names_tars else MISSING_TEXT)
        if stored is None and "image" in columns:
            paths = as_strings(columns["image"], is_missing(columns["image"]), MISSING_TEXT)
            stored = ImageFiles(paths if table.images_in is None else within(table.images_in, paths))
        self._stored = stored
        self._groups = as_strings(columns["group"], is_missing(columns["group"]), "") if "group" in columns else None
        self._keys, self._shards = (identities(columns[name], path) if name in columns else None for name in ("key", "shard"))
        if shard_pattern is not None and self._keys is not None:
            self._shards = self._named_shards(shard_pattern, self._keys)
        if self._keys is None and (shard_pattern is not None or self._shards is not None):
            option = argument_of("shard" if self._shards is not None else "shard_pattern")
            raise DataError(f"{option} needs the keys of the samples. Name their column with {argument_of('key')}.")
        self.n_pairs = len(self._texts)
        self._check_lengths()
        self._warn_of_texts(text_is_missing, table.separator)

    def _named_shards(self, pattern: str, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        if self._shards is not None:
            raise DataError(f"{argument_of('shard')} and {argument_of('shard_pattern')} both name the tars. Omit one of them.")
        return tar_names(pattern, keys)

    def _check_lengths(self) -> None:
        lengths = pc.utf8_length(self._texts)
        if (longest := pc.max(lengths).as_py()) > limit("characters"):
            fault = f"has {longest} characters, more than the limit of {limit('characters')}"
            repair = f"Close its quotation mark, or raise the limit: {VARIABLE}=characters=NUMBER."
            raise DataError(f"The text of row {pc.index(lengths, longest).as_py()} of {self.path} {fault}. {repair}")

    def _warn_of_texts(self, missing: pd.Series[bool], separator: str | None) -> None:
        """Warn of missing texts, and of texts of a csv file that seem to contain whole rows."""
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
        """Return a line for the user: the used columns and the number of rows."""
        return f"Reading {', '.join(map(str, dict.fromkeys(self.used.values())))} of {self.path}; {len(self):,} rows"

    @functools.cached_property
    def keys(self) -> Sequence[str]:
        """Return the keys, or without a column of keys the row numbers: unlike paths, they are unique."""
        return self._keys.to_pylist() if self._keys is not None else [str(row) for row in range(len(self))]

    @property
    def text_column(self) -> pa.ChunkedArray:
        """Return the text of each row."""
        return self._texts

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """Return the text of each row."""
        return cast("list[str]", self._texts.to_pylist())

    @functools.cached_property
    def image_paths(self) -> Sequence[str] | None:
        """Return the image path of each row; None if the table has no column of paths."""
        paths = None if self._stored is None else self._stored.paths
        return None if paths is None else cast("list[str]", paths.to_pylist())

    @property
    def stored(self) -> StoredImages:
        """Return the images; DataError if the table has no column of images."""
        if self._stored is None:
            raise DataError(f"{self.path} has no column of images. Name one with {argument_of('image')}.")
        return self._stored

    def without_images(self) -> TablePairs:
        """Return the same pairs, whose parts are read without opening an image."""
        pairs = copy.copy(self)
        pairs.opens_images = False
        return pairs

    @functools.cached_property
    def groups(self) -> Sequence[str] | None:
        """Return the group of each row, or None without a group column."""
        return None if self._groups is None else cast("list[str]", self._groups.to_pylist())

    def with_groups(self, groups: Sequence[str]) -> TablePairs:
        """Return the same pairs with other groups, one for each row; "" is a row without a group."""
        pairs = copy.copy(self)
        vars(pairs).pop("groups", None)  # cached
        pairs._groups = pa.chunked_array([pa.array(groups, pa.string())])
        return pairs

    def parts(self) -> Sequence[TablePart]:
        """Return blocks of `ROWS` rows, or of `UNOPENED_ROWS` if the images are not opened."""
        rows = ROWS if self.opens_images else UNOPENED_ROWS
        return [TablePart(self, start, min(start + rows, len(self))) for start in range(0, len(self), rows)]

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Yield the images of rows start .. stop-1, RGB; a damaged image is a DataError with its file and row."""
        with ThreadPoolExecutor(reading_threads()) as pool:
            for first in range(start, stop, AHEAD):
                rows = range(first, min(first + AHEAD, stop))
                results = in_slices(pool, lambda row: read_or_count(self.stored.file(row)), rows)
                for batch in limited_batches(zip(rows, results, strict=True), AHEAD, _pixels_to_read):
                    others = pool.map(self._image, [row for row, result in batch if isinstance(result, int)])
                    yield from (next(others) if isinstance(result, int) else result for _, result in batch)

    def small_images(self, rows: Sequence[int], side: int) -> Iterator[Image.Image | None]:
        """Yield the images of `rows`, shrunk to fit a square of `side` pixels; None for an image that cannot be read."""
        with ThreadPoolExecutor(reading_threads()) as pool:
            for start in range(0, len(rows), AHEAD):
                ahead = rows[start : start + AHEAD]
                yield from pool.map(lambda row: read_small_image(self.stored.file(row), side), ahead)

    def fingerprint(self) -> str:
        """Return a digest of texts, groups and images; for image files, of their paths, sizes and modification times."""
        return fingerprint_of([part.digest() for part in self.parts()])

    def identity(self) -> dict[str, str]:
        """Return digests of the columns of images and texts, in order: unlike `fingerprint`, the same on another machine."""
        return {"images": self.stored.digest(), "texts": rows_digest(self._texts)}

    def block(self, start: int, stop: int) -> dict[str, list[str]]:
        """Return texts and, if known, groups, keys and tars of the rows, and the image paths if the images are not opened."""
        paths = None if self.opens_images or self._keys is not None or self._stored is None else self._stored.paths
        columns = {"text": self._texts, "group": self._groups, "key": self._keys, "shard": self._shards, "image_path": paths}
        return {name: column[start:stop].to_pylist() for name, column in columns.items() if column is not None}

    def _image(self, row: int) -> Image.Image:
        return read_image(self.stored.file(row), f"{self.stored.name(row)} (row {row} of {self.path}, {self._place})")


def _pixels_to_read(opened: tuple[int, Image.Image | int]) -> int:
    return opened[1] if isinstance(opened[1], int) else 0


@functools.cache
def _log_once(message: str) -> None:
    """Log a message once, although one command may open a table several times."""
    log(message)
