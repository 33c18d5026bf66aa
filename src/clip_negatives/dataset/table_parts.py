"""Parts of a table: rows that are read together."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_negatives.dataset.pairs import Sample
from clip_negatives.dataset.urls import is_plain, shard_source
from clip_negatives.storage.source_files import DIGESTED_FILES, SourceFile, evenly_spread

if TYPE_CHECKING:
    from clip_negatives.dataset.tables import TablePairs


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
        """Return size and digest of at most `DIGESTED_FILES` evenly spread images, or of the tars that the table names."""
        if shards := self.source.block(self.start, self.stop).get("shard"):
            return [_shard_source(shard) for shard in dict.fromkeys(shards)]
        rows = evenly_spread(self.stop - self.start, DIGESTED_FILES) if self.source.opens_images else ()
        sources = (self.source.stored.source(self.start + row) for row in rows)
        return list({source.file: source for source in sources}.values())

    def samples(self) -> Iterator[Sample]:
        """Read the rows; a damaged image is a DataError with its file and row: it would stop open_clip too."""
        columns = self.source.block(self.start, self.stop)
        has_keys = "key" in columns  # then the images are in tars
        keys = columns.pop("key", None) or list(map(str, range(self.start, self.stop)))
        opened = self.source.images(self.start, self.stop) if self.source.opens_images else itertools.repeat(None)
        for place, (key, image) in enumerate(zip(keys, opened, strict=False)):
            values: dict[str, Any] = {name: column[place] for name, column in columns.items()}
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
