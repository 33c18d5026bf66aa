"""Read the clustered samples of tars, each tar once and forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from clip_negatives.dataset.archive import DAMAGED, raw_samples
from clip_negatives.dataset.urls import MeasuredStream, ShardStream, expand_urls, open_url, shard_source, unreadable
from clip_negatives.errors import DataError
from clip_negatives.printing import log
from clip_negatives.progress import stage
from clip_negatives.storage.sharded_labels import LabelledTars
from clip_negatives.storage.shards import last_parts
from clip_negatives.storage.source_files import SourceFile
from clip_negatives.training.same_files import check_contents, check_same


class ClusteredTars:
    """The tars of a clusters or labels folder, at their current addresses."""

    def __init__(self, source: LabelledTars, data: str) -> None:
        """Take paths, URLs and commands of the tars."""
        self._folder, self._sources = source.path, source.sources()
        self._known = _by_ending(expand_urls(data))

    def check(self) -> None:
        """Compare size and content of the tars with the clustered ones, as a training does, before any tar is read.

        Raises:
            DataError: the data lack a clustered tar.
            ArtifactError: a tar is not the clustered one.
        """
        with stage("Comparing the tars with the clusters"):
            check_contents([(self._address(tar), source) for tar, source in self._sources.items()], self._folder)

    def locate(self, tars: Iterable[str]) -> None:
        """Check that the data have these tars, and log which of them can be compared by their keys alone."""
        addresses = {tar: self._address(tar) for tar in tars}
        if unknown := [address for tar, address in addresses.items() if self._source(tar).size is None]:
            log(
                f"{len(unknown)} of {len(addresses)} tars are compared with the clustered tars by the keys of their samples "
                f"alone, because the clusters do not have their sizes, as for pipe:. The first one is {unknown[0]}"
            )

    def read(self, tar: str, rows: dict[str, int], add: Callable[[int, bytes], None]) -> None:
        """Read a tar, and call `add` with the row and the bytes of each clustered sample.

        Args:
            tar: name of the tar in the clusters.
            rows: row of each of its samples, by key. Of samples with the same key, the first one is used, as in `prepare`.
            add: function that keeps a sample.

        Raises:
            ArtifactError: the tar is not the clustered one.
            DataError: the tar cannot be read, or lacks a clustered sample.
        """
        address, missing, is_damaged = self._address(tar), dict(rows), False
        is_measured = (source := shard_source(address)).size is None
        check_same(source, self._source(tar), self._folder)
        try:
            with open_url(address) as opened:
                stream = MeasuredStream(opened, address) if is_measured else ShardStream(opened, address)
                try:
                    for key, sample in raw_samples(stream, missing):
                        if (row := missing.pop(key, None)) is not None:
                            add(row, sample)
                    if isinstance(stream, MeasuredStream):
                        check_same(stream.source(), self._source(tar), self._folder)
                except DAMAGED:  # prepare reported the damage, and clustered only the samples before it
                    is_damaged = True
        except OSError as error:
            raise unreadable("tar", address, error) from error
        if is_damaged and is_measured:  # its last sample may be cut
            fault = f"The tar {address} is damaged, or its command failed, after {stream.n_read} bytes"
            raise DataError(f"{fault}. Run the command again, or name the tar by its path or URL.")
        if missing:
            fault = f"{'is damaged and ' if is_damaged else ''}lacks the clustered sample {next(iter(missing))}"
            raise DataError(f"The tar {address} {fault}. Cluster the data again, for example with clip-negatives prepare.")

    def _source(self, tar: str) -> SourceFile:
        return self._sources.get(tar, SourceFile(tar, None, ""))

    def _address(self, tar: str) -> str:
        """Return the current address of a clustered tar."""
        for depth in range(tar.count("/") + 1, 0, -1):
            if (address := self._known.get(last_parts(tar, depth))) is not None:
                return address
        raise DataError(f"The data do not include the clustered tar {tar}. Name all tars that were clustered.")


def _by_ending(addresses: list[str]) -> dict[str, str]:
    """Return the address of a tar by the last components of its path, as far as they are unique."""
    found: dict[str, set[str]] = {}
    for address in addresses:
        for depth in range(1, address.count("/") + 2):
            found.setdefault(last_parts(address, depth), set()).add(address)
    return {ending: address for ending, (address, *duplicates) in found.items() if not duplicates}
