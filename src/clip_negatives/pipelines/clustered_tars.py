"""Read the clustered samples of tars, each tar once and forward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import pyarrow as pa

from clip_negatives.dataset.archive import DAMAGED, raw_samples
from clip_negatives.dataset.urls import MeasuredStream, ShardStream, open_url, shard_size, shard_source, unreadable
from clip_negatives.errors import DataError
from clip_negatives.printing import log
from clip_negatives.progress import stage
from clip_negatives.storage.sharded_samples import ShardedSamples
from clip_negatives.storage.shards import last_parts
from clip_negatives.storage.source_files import SourceFile
from clip_negatives.training.same_data import map_files
from clip_negatives.training.same_files import check_same


class ClusteredTars:
    """The tars of a clusters folder, at their current addresses.

    Attributes:
        addresses: address of each tar that has clustered samples, by its name in the clusters.
    """

    def __init__(self, source: ShardedSamples, shards: list[str]) -> None:
        """Find the address of each tar.

        Raises:
            DataError: `shards` lack a clustered tar.
            ArtifactError: the samples of a tar do not stand together in the clusters.
        """
        source.check_together()
        self._source, self._folder, self._sources = source, source.path, source.sources()
        known = _by_ending(shards)
        for shard in self._sources:
            _address(shard, known)
        self.addresses = {shard: _address(shard, known) for shard, *_ in source.shards()}

    def compared(self) -> dict[str, SourceFile]:
        """Compare size and digest of each tar with those of the clustered tar, and return them by the address of the tar."""
        with stage("Comparing the tars with the clusters", len(self.addresses), "tars") as running:

            def source(address: str) -> SourceFile:
                tar = shard_source(address)
                running.advance()
                return tar

            tars = map_files(source, self.addresses.values(), chunk=1)
        for shard, tar in zip(self.addresses, tars, strict=True):
            check_same(tar, self._known(shard), self._folder)
        if unknown := [address for shard, address in self.addresses.items() if self._known(shard).size is None]:
            log(
                f"{len(unknown)} of {len(tars)} tars are compared with the clustered tars by the keys of their samples alone, "
                f"because the clusters do not have their sizes, as for pipe:. The first one is {unknown[0]}"
            )
        return {tar.file: tar for tar in tars}

    def samples(self, shards: Collection[str]) -> Iterator[tuple[str, pa.Array, slice]]:
        """Yield the name of each of these tars, and the keys and rows of its samples."""
        for shard, keys, rows, _ in self._source.shards():
            if shard in shards and isinstance(rows, slice):
                yield shard, keys, rows

    def read(self, shard: str, keys: pa.Array, rows: slice, add: Callable[[int, bytes], None]) -> None:
        """Read a tar, and call `add` with the row and the bytes of each clustered sample.

        Args:
            shard: name of the tar in the clusters.
            keys: keys of its samples. Of samples with the same key, the first one is used, as in `prepare`.
            rows: rows of its samples.
            add: function that keeps a sample.

        Raises:
            ArtifactError: the tar is not the clustered one.
            DataError: the tar cannot be read, or lacks a clustered sample.
        """
        address, missing = self.addresses[shard], dict(zip(keys.to_pylist(), range(rows.start, rows.stop), strict=True))
        is_measured, is_damaged = shard_size(address) is None, False
        try:
            with open_url(address) as opened:
                stream = MeasuredStream(opened, address) if is_measured else ShardStream(opened, address)
                try:
                    for key, sample in raw_samples(stream, missing):
                        if (row := missing.pop(key, None)) is not None:
                            add(row, sample)
                    if isinstance(stream, MeasuredStream):
                        check_same(stream.source(), self._known(shard), self._folder)
                except DAMAGED:  # prepare reported the damage, and clustered only the samples before it
                    is_damaged = True
        except OSError as error:
            raise unreadable("tar", address, error) from error
        if is_damaged and is_measured:  # its last sample may be cut
            fault = f"The tar {address} is damaged, or its command failed, after {stream.n_read} bytes"
            raise DataError(f"{fault}. Run the command again, or name the tar by its path or URL.")
        if missing:
            fault = "is damaged and lacks" if is_damaged else "lacks"
            raise DataError(
                f"The tar {address} {fault} the clustered sample {next(iter(missing))}. Run clip-negatives prepare again."
            )

    def _known(self, shard: str) -> SourceFile:
        return self._sources.get(shard, SourceFile(shard, None, ""))


def _by_ending(shards: list[str]) -> dict[str, str]:
    """Return the address of a shard by the last components of its path, as far as they are unique."""
    addresses: dict[str, set[str]] = {}
    for shard in shards:
        for depth in range(1, shard.count("/") + 2):
            addresses.setdefault(last_parts(shard, depth), set()).add(shard)
    return {ending: shard for ending, (shard, *duplicates) in addresses.items() if not duplicates}


def _address(shard: str, addresses: dict[str, str]) -> str:
    """Return the current address of a clustered shard."""
    for depth in range(shard.count("/") + 1, 0, -1):
        if (address := addresses.get(last_parts(shard, depth))) is not None:
            return address
    raise DataError(f"The data do not include the clustered tar {shard}. Name all tars that were clustered.")
