"""Samples on their way from old tars to new tars, grouped in files on a disk: a shuffle of data larger than memory.

A bucket has the samples of some consecutive new tars. Each task writes a part: a folder with two files for each bucket.

| file | content |
|---|---|
| ``000.samples`` | bytes of the samples of bucket 0, one after another |
| ``000.index`` | row, size and CRC-32 of each of them |
| ``tars.jsonl`` | for each old tar that was copied as a whole: its name, and the lengths of all other files after it |

If a task is killed, its part counts up to the last of these lengths that its files still have.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.atomic import writing
from clip_negatives.storage.safe_reading import parse_json

MAX_BUCKETS = 64  # a process has two open files for each
BUFFER_BYTES = 2**17  # of each open file
TARS = "tars.jsonl"
ENTRY = np.dtype([("row", "<i8"), ("size", "<i8"), ("crc", "<u4")])  # of an index
PACKED = struct.Struct("<qqI")  # the same, for one entry


class BucketWriter:
    """A part that this task writes, as a context manager."""

    def __init__(self, folder: Path, n_buckets: int) -> None:
        self._folder, self._stack = folder, ExitStack()
        with writing(folder):
            folder.mkdir()
            self._files = [self._stack.enter_context(file.open("wb", BUFFER_BYTES)) for file in _files(folder, n_buckets)]
            self._tars = self._stack.enter_context((folder / TARS).open("w"))

    def __enter__(self) -> BucketWriter:
        return self

    def __exit__(self, *error: object) -> None:
        with writing(self._folder):
            self._stack.close()

    def add(self, bucket: int, row: int, sample: bytes) -> None:
        """Append the bytes of a sample to a bucket."""
        with writing(self._folder):
            self._files[2 * bucket].write(sample)
            self._files[2 * bucket + 1].write(PACKED.pack(row, len(sample), zlib.crc32(sample)))

    def complete(self, tar: str) -> None:
        """Record that all samples of an old tar were added."""
        with writing(self._folder):
            for file in self._files:
                file.flush()
            self._tars.write(json.dumps({"tar": tar, "lengths": [file.tell() for file in self._files]}) + "\n")
            self._tars.flush()


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """The complete old tars of a part, and the lengths of its files after the last of them."""

    folder: Path
    n_buckets: int
    tars: Sequence[str]
    lengths: Sequence[int]

    @classmethod
    def of(cls, folder: Path, n_buckets: int) -> WrittenPart:
        """Read what a task wrote, which may have been killed; ignore what follows a cut or damaged place."""
        sizes = [file.stat().st_size if file.exists() else 0 for file in _files(folder, n_buckets)]
        tars, lengths = list[str](), [0] * len(sizes)
        lines = (folder / TARS).read_bytes().splitlines() if (folder / TARS).exists() else []
        for line in lines:
            try:
                record = parse_json(line)
            except ValueError:
                break
            if any(length > size for length, size in zip(record["lengths"], sizes, strict=True)):
                break
            tars.append(record["tar"])
            lengths = record["lengths"]
        return cls(folder, n_buckets, tars, lengths)


class Bucket:
    """The samples of a bucket, of all parts. Memory holds its index, and the samples of one new tar at a time."""

    def __init__(self, number: int, parts: Sequence[WrittenPart]) -> None:
        self._files = [_files(part.folder, part.n_buckets)[2 * number] for part in parts]
        indexes = [_read_index(part, number) for part in parts]
        index = np.concatenate(indexes)
        order = np.argsort(index["row"], kind="stable")
        self._index = index[order]
        self._offsets = np.concatenate([np.cumsum(part["size"]) - part["size"] for part in indexes])[order]
        self._parts = np.repeat(np.arange(len(parts)), [len(part) for part in indexes])[order]

    def n_bytes(self, rows: NDArray[Any]) -> int:
        """Return the total size of samples."""
        return int(self._index["size"][self._places(rows)].sum())

    def read(self, rows: NDArray[Any]) -> Iterator[bytes]:
        """Yield the bytes of samples, in the order of `rows`; each file is read forward once.

        Raises:
            ArtifactError: a file is damaged.
        """
        places = self._places(rows)
        samples: dict[int, bytes] = {}
        for part in np.unique(self._parts[places]).tolist():
            inside = places[self._parts[places] == part]
            file = self._files[part]
            with file.open("rb") as stream:
                for place in inside[np.argsort(self._offsets[inside])].tolist():
                    _, size, crc = self._index[place].item()
                    stream.seek(self._offsets[place])
                    samples[place] = stream.read(size)
                    if len(samples[place]) != size or zlib.crc32(samples[place]) != crc:
                        raise _damaged(file)
        for place in places.tolist():
            yield samples.pop(place)

    def _places(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """Return the places of rows in the index."""
        places = np.minimum(np.searchsorted(self._index["row"], rows), len(self._index) - 1)
        if not np.array_equal(self._index["row"][places], rows):
            raise _damaged(self._files[0])
        return places


def _files(folder: Path, n_buckets: int) -> list[Path]:
    """Return the files of samples and of indexes, bucket by bucket."""
    return [folder / f"{bucket:03d}.{kind}" for bucket in range(n_buckets) for kind in ("samples", "index")]


def _read_index(part: WrittenPart, bucket: int) -> NDArray[Any]:
    file = _files(part.folder, part.n_buckets)[2 * bucket + 1]
    n_samples, length = part.lengths[2 * bucket : 2 * bucket + 2]
    try:
        entries = np.fromfile(file, ENTRY, length // ENTRY.itemsize) if length else np.empty(0, ENTRY)
    except OSError as error:
        raise _damaged(file) from error
    if entries.nbytes != length or entries["size"].sum() != n_samples:
        raise _damaged(file)
    return entries


def _damaged(file: Path) -> ArtifactError:
    return ArtifactError(
        f"The bucket {file.with_suffix('')} is damaged. Delete the folder {file.parents[2]}, and run the command again."
    )
