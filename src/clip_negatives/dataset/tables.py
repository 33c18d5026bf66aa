"""Image-text pairs in the rows of a table: a csv, jsonl or parquet file, a folder of images, or a Hugging Face data set."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from clip_negatives.dataset.columns import argument_of
from clip_negatives.dataset.formats import Table
from clip_negatives.dataset.images import AHEAD, count_pixels, limited_batches, read_image, read_small_image
from clip_negatives.dataset.pairs import Sample, fingerprint_of
from clip_negatives.dataset.stored_images import ImageFiles, StoredImages
from clip_negatives.dataset.tar_names import tar_names
from clip_negatives.dataset.urls import is_plain, shard_source
from clip_negatives.dataset.values import check_values, identities, is_missing, strings
from clip_negatives.errors import DataError
from clip_negatives.printing import log
from clip_negatives.storage.digests import rows_digest
from clip_negatives.storage.limits import VARIABLE, limit
from clip_negatives.storage.sample_ids import MISSING_TEXT
from clip_negatives.storage.source_files import DIGESTED_FILES, SourceFile, evenly_spread

if TYPE_CHECKING:
    import pandas as pd

ROWS = 2048  # rows per part: a process encodes a part before it writes
UNOPENED_ROWS = 65_536  # rows per part of a table whose images are not opened


class TablePairs:
    """Image-text pairs of a table, one pair per row, in the order of the rows.

    As in open_clip's csv data, relative image paths start at the working directory, and a missing text is "nan" (`MISSING`).
    The used columns are in memory, except for images. A row without a group is a group of its own.

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
        self.names = table.names
        self.path, self.used, self.streamed, self.opens_images = path, used, table.streamed, opens_images
        self._place = "counted from 0" if table.separator is None else "counted from 0 after the header"
        frame = table.read(list(dict.fromkeys(name for role, name in used.items() if stored is None or role != "image")))
        if frame.empty:
            raise DataError(f"{path} has no rows{'' if table.separator is None else ' below its header'}. Add pairs.")
        check_values(path, frame)
        columns = {role: frame[name] for role, name in used.items() if name in frame}
        text_is_missing = is_missing(columns["text"])
        self._texts = strings(columns["text"], text_is_missing, MISSING_TEXT)
        if stored is None and "image" in columns:
            stored = ImageFiles(strings(columns["image"], is_missing(columns["image"]), MISSING_TEXT))
        self._stored = stored
        self._groups = strings(columns["group"], is_missing(columns["group"]), "") if "group" in columns else None
        self._keys, self._shards = (identities(columns[name], path) if name in columns else None for name in ("key", "shard"))
        if shard_pattern is not None:
            self._shards = self._named_shards(shard_pattern)
        self.n_pairs = len(self._texts)
        self._check_lengths()
        self._warn_of_texts(text_is_missing, table.separator)

    def _named_shards(self, pattern: str) -> pa.ChunkedArray:
        if self._keys is None or self._shards is not None:
            fault = "no column of keys is named" if self._keys is None else "a column of tars is named too"
            repair = "name it with" if self._keys is None else "omit one of them:"
            option = argument_of("key" if self._keys is None else "shard")
            raise DataError(f"{argument_of('shard_pattern')} is set, but {fault}. {repair.capitalize()} {option}.")
        return tar_names(pattern, self._keys)

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
        """Return the keys, or without a column of keys the row numbers: unlike paths, they are unique."""
        return self._keys.to_pylist() if self._keys is not None else [str(row) for row in range(len(self))]

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

    def parts(self) -> Sequence[TablePart]:
        """Return blocks of `ROWS` rows, or of `UNOPENED_ROWS` if the images are not opened."""
        rows = ROWS if self.opens_images else UNOPENED_ROWS
        return [TablePart(self, start, min(start + rows, len(self))) for start in range(0, len(self), rows)]

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

    def block(self, start: int, stop: int) -> dict[str, list[str]]:
        """Return texts and, if known, groups, keys and tars of the rows, and the image paths if the images are not opened."""
        paths = None if self.opens_images or self._keys is not None or self._stored is None else self._stored.paths
        columns = {"text": self._texts, "group": self._groups, "key": self._keys, "shard": self._shards, "image_path": paths}
        return {name: column[start:stop].to_pylist() for name, column in columns.items() if column is not None}

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
        """Return a digest of the columns, row numbers and images; for image files, of path, size and modification time."""
        sha256 = hashlib.sha256(f"{self.start} ".encode())
        for name, values in self.source.block(self.start, self.stop).items():
            sha256.update(f"{name}\1{len(values)}\1".encode())
            sha256.update("\0".join(values).encode())
        for row in range(self.start, self.stop) if self.source.opens_images else ():
            sha256.update(self.source.stored.stamp(row))
        return sha256.hexdigest()

    def source_files(self) -> list[SourceFile]:
        """Return size and digest of at most `DIGESTED_FILES` evenly spread images, or of the tars that are known."""
        if shards := self.source.block(self.start, self.stop).get("shard"):
            return [_shard_source(shard) for shard in dict.fromkeys(shards)]
        rows = evenly_spread(self.stop - self.start, DIGESTED_FILES) if self.source.opens_images else ()
        sources = (self.source.stored.source(self.start + row) for row in rows)
        return list({source.file: source for source in sources}.values())

    def samples(self) -> Iterator[Sample]:
        """Read the rows; a damaged image is a DataError with its file and row: it would stop open_clip too."""
        columns = self.source.block(self.start, self.stop)
        has_keys = not {"key", "shard"}.isdisjoint(columns)  # then the samples are in tars, and the paths of images are unused
        keys = columns.pop("key", None) or list(map(str, range(self.start, self.stop)))
        opened = self.source.images(self.start, self.stop) if self.source.opens_images else itertools.repeat(None)
        for place, (key, image) in enumerate(zip(keys, opened, strict=False)):
            values = {name: column[place] for name, column in columns.items()}
            if image is not None and not has_keys:
                values |= self._stored_image(self.start + place)
            yield Sample(key=key, image=image, **values)

    def _stored_image(self, row: int) -> dict[str, Any]:
        stored = self.source.stored
        size = stored.size(row)
        path = None if stored.paths is None else stored.name(row)
        return {"image_path": path, "image_bytes": -1 if size is None else size}


def _shard_source(shard: str) -> SourceFile:
    """Return size and digest of a tar, which are unknown if it is not a local file."""
    return shard_source(shard) if is_plain(shard) and Path(shard).is_file() else SourceFile(shard, None, "")


@functools.cache
def _log_once(message: str) -> None:
    """Log a message of a table that one command opens several times."""
    log(message)
