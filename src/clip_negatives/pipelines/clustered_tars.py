"""Read the samples of clustered tars in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_negatives.dataset.archive import read_range, sample_offsets
from clip_negatives.dataset.urls import open_url, shard_stamp
from clip_negatives.distributed.processes import Processes
from clip_negatives.errors import DataError, UnsupportedError
from clip_negatives.progress import stage
from clip_negatives.storage.ownership import replaced_file
from clip_negatives.storage.sharded_samples import ShardedSamples
from clip_negatives.storage.shards import last_parts


class ClusteredTars:
    """The tars of a clusters folder, at their current addresses.

    Call `find_samples` first: it stores offset and size of each sample in the work folder.
    """

    def __init__(self, source: ShardedSamples, shards: list[str], work: Path) -> None:
        """Check the tars.

        Raises:
            UnsupportedError: a tar is a ``pipe:``.
            DataError: `shards` lack a clustered tar.
            ArtifactError: the samples of a tar do not stand together in the clusters.
        """
        source.check_together()
        self.source, self._work = source, work
        self._addresses = _addresses(shards)
        self._stamps: dict[int, str] = {}
        for shard in source.sources():
            self.address(shard)

    def address(self, shard: str) -> str:
        """Return the current address of a clustered shard."""
        for depth in range(shard.count("/") + 1, 0, -1):
            if (address := self._addresses.get(last_parts(shard, depth))) is not None:
                return address
        raise DataError(f"The data do not include the clustered tar {shard}. Name all tars that were clustered.")

    def find_samples(self, processes: Processes) -> None:
        """Store the offset and size of each sample in its tar, int64; each process reads its share of the tars."""
        with stage("Finding the samples in the tars", len(self.source.sources()), "tars") as running:
            for number, (shard, keys, *_) in enumerate(self.source.shards()):
                file = self._offsets_file(number, shard)
                if number % processes.world_size == processes.rank and not file.exists():
                    self._write_offsets(shard, keys.to_pylist(), file)
                running.advance()

    def _write_offsets(self, shard: str, names: list[str], file: Path) -> None:
        offsets = sample_offsets(self.address(shard))
        if (missing := next((key for key in names if key not in offsets), None)) is not None:
            raise DataError(f"{self.address(shard)} no longer has the sample {missing}. Run clip-negatives prepare again.")
        with replaced_file(file) as partial, partial.open("wb") as stream:
            np.save(stream, np.array([offsets[key] for key in names], dtype=np.int64))

    def sizes(self) -> NDArray[Any]:
        """Return the bytes of each sample, int64, shape (N,)."""
        return np.concatenate([self._offsets(number)[:, 1] for number in range(len(self._shards))])

    def read(self, rows: NDArray[Any]) -> Iterator[bytes]:
        """Yield the bytes of samples in the order of `rows`; open each tar once."""
        samples: dict[int, bytes] = {}
        ordered, starts = np.sort(rows), np.array(list(self._shards.values()))
        numbers = np.searchsorted(starts, ordered, "right") - 1
        names = list(self._shards)
        for number in np.unique(numbers).tolist():
            offsets = self._offsets(number)
            with open_url(self.address(names[number])) as stream:
                for row in ordered[numbers == number].tolist():
                    start, size = offsets[row - starts[number]].tolist()
                    samples[row] = read_range(stream, start, size, names[number])
        for row in rows.tolist():
            yield samples.pop(row)

    @cached_property
    def _shards(self) -> dict[str, int]:
        """Return the first row of each shard."""
        return {shard: rows.start for shard, _, rows, _ in self.source.shards() if isinstance(rows, slice)}

    def _offsets(self, number: int) -> NDArray[Any]:
        """Return offset and size of each sample of a shard, int64, shape (samples, 2), memory-mapped."""
        offsets: NDArray[Any] = np.load(self._offsets_file(number, list(self._shards)[number]), mmap_mode="r")
        return offsets

    def _offsets_file(self, number: int, shard: str) -> Path:
        """Return the file with the offsets of a shard's samples; its name depends on the tar and the clusters."""
        if number not in self._stamps:
            address, manifest = self.address(shard), self.source.manifest
            origin = f"{manifest.get('data')} {manifest.get('created')} {address} "
            self._stamps[number] = hashlib.sha256(origin.encode() + shard_stamp(address)).hexdigest()[:16]
        return self._work / f"{number:06d}-{self._stamps[number]}.npy"


def _addresses(shards: list[str]) -> dict[str, str]:
    """Return the address of a shard by the last components of its path, as far as they are unique."""
    if piped := next((shard for shard in shards if shard.startswith("pipe:")), None):
        raise UnsupportedError(f"{piped} is a pipe, which does not allow random access. Name the tars by path or URL.")
    addresses: dict[str, set[str]] = {}
    for shard in shards:
        for depth in range(1, shard.count("/") + 2):
            addresses.setdefault(last_parts(shard, depth), set()).add(shard)
    return {ending: shard for ending, (shard, *duplicates) in addresses.items() if not duplicates}
