"""Shards of a clusters folder made from tars: their names and source files, and the keys, rows and labels of their samples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from clip_negatives.errors import ArtifactError
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.manifest import MISSING_SHARDS
from clip_negatives.storage.safe_reading import BATCH_ROWS
from clip_negatives.storage.source_files import SourceFile


@dataclass(frozen=True, slots=True)
class KnownShards:
    """Shards of a clusters or labels folder, identified by their last path components.

    Attributes:
        depth: number of last path components; 0 if the folder does not name shards.
        sources: size and digest of each shard, by its last path components; empty if an older version wrote the folder.
    """

    folder: Path
    depth: int
    sources: Mapping[str, SourceFile]

    def ending(self, address: str) -> str:
        """Return the last path components of the shard at a path or URL; a copy of the shard has the same ones."""
        return last_parts(address, self.depth) if self.depth else ""

    def _check_distinct(self, addresses: Sequence[str], known: Collection[str]) -> None:
        """Raise ArtifactError if two addresses match the same known shard: both would get its labels."""
        seen: dict[str, str] = {}
        for address in addresses:
            ending = self.ending(address)
            if ending in known and seen.setdefault(ending, address) != address:
                both = f"The shards {seen[ending]} and {address} would both get the labels of {ending}."
                raise ArtifactError(f"{both} Train on the shards that were clustered.")


@dataclass(frozen=True, slots=True)
class ClusteredShards(KnownShards):
    """Shards of a clusters folder.

    Attributes:
        endings: last path components of each shard, by its name.
        missing: last path components of the tars that were left out, because they were missing.
    """

    endings: Mapping[str, str]
    missing: Collection[str] = ()

    @classmethod
    def of(cls, folder: ClustersFolder) -> ClusteredShards:
        """Return the shards of a clusters folder; ArtifactError if two shards cannot be told apart."""
        if "shard" not in folder.samples.column_names:
            return cls(folder.path, 0, {}, {"": ""})
        # A shard without a readable sample is not in the column, but it counts as clustered.
        sources = folder.sources
        missing = folder.manifest.get(MISSING_SHARDS, [])
        clustered = [*pc.unique(folder.samples["shard"]).to_pylist(), *(source.file for source in sources)]
        shards = dict.fromkeys([*clustered, *missing])
        check_distinct(list(shards))
        depth = distinct_depth(list(shards))
        endings = {shard: last_parts(shard, depth) for shard in shards}
        known = {endings[source.file]: source for source in sources}
        return cls(folder.path, depth, known, endings, frozenset(endings[shard] for shard in missing))

    def check(self, addresses: Sequence[str]) -> None:
        """Raise ArtifactError if a shard was not clustered, or if two shards have the same last path components."""
        if self.depth:
            known = set(self.endings.values())
            for address in addresses:
                if self.ending(address) not in known:
                    raise self.unknown(address)
            self._check_distinct(addresses, known)

    def unknown(self, address: str) -> ArtifactError:
        """Return the error for a shard that was not clustered."""
        fault = f"The shard {address} was not clustered: the clusters folder {self.folder} has no {self.ending(address)}."
        return ArtifactError(f"{fault} Train on the clustered shards, or run clip-negatives prepare again on these.")


class LeftOut(NamedTuple):
    """Samples with one key in one shard that were not clustered.

    Attributes:
        n_skipped: number of these samples.
        first_is_clustered: whether the first sample with the key was clustered; then the skipped samples follow it.
    """

    n_skipped: int
    first_is_clustered: bool


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Row of each sample of a clusters folder, by shard and key; by key alone if the folder does not name shards.

    Attributes:
        rows: row of each key, by the last path components of the shard.
        texts: text of each row.
    """

    shards: ClusteredShards
    rows: Mapping[str, Mapping[str, int]]
    texts: pa.ChunkedArray

    @classmethod
    def of(cls, folder: ClustersFolder) -> ShardRows:
        """Return the rows of a clusters folder; ArtifactError if two shards cannot be told apart."""
        shards = ClusteredShards.of(folder)
        rows: dict[str, dict[str, int]] = {ending: {} for ending in shards.endings.values()}
        start = 0
        for batch in folder.samples.to_batches(BATCH_ROWS):
            keys = batch.column("key").to_pylist()
            names = batch.column("shard").to_pylist() if shards.depth else [""] * len(keys)
            for row, (name, key) in enumerate(zip(names, keys, strict=True), start):
                rows[shards.endings[name]][key] = row
            start += len(keys)
        return cls(shards, rows, folder.samples["text"])

    def left_out(self, broken: pa.Table) -> dict[tuple[str, str], LeftOut]:
        """Return the samples of `ClustersFolder.broken`, by the last path components of the shard and the key."""
        shards, keys = broken["shard"].to_pylist(), broken["key"].to_pylist()
        counts = Counter((self.shards.ending(shard), key) for shard, key in zip(shards, keys, strict=True))
        return {
            (ending, key): LeftOut(count, first_is_clustered=key in self.rows.get(ending, {}))
            for (ending, key), count in counts.items()
        }

    def row(self, address: str, key: str) -> int | None:
        """Return the row of a sample, None if it was not clustered; ArtifactError if its shard was not clustered."""
        rows = self.rows.get(self.shards.ending(address))
        if rows is None:
            raise self.shards.unknown(address)
        return rows.get(key)

    def text(self, row: int) -> str:
        """Return the text of a sample."""
        return str(self.texts[row].as_py())


def last_parts(address: str, depth: int) -> str:
    """Return the last `depth` path components of a shard; for a ``pipe:`` command, of the last tar in the command."""
    if address.startswith("pipe:"):
        tar = piped_tar(address)
        if tar is None:
            return address
        address = tar
    if "://" in address:
        address = address.partition("?")[0]  # the query is a signature, which changes
    return "/".join(address.split("/")[-depth:])


def piped_tar(command: str) -> str | None:
    """Return the path or URL of the last tar in a ``pipe:`` command; None without one."""
    words = re.split(r"[\s'\"]+", command.removeprefix("pipe:"))
    tars = [word for word in words if re.search(r"\.(tar|tgz)(\.\w+)?$", word)]
    return tars[-1] if tars else None


def check_distinct(shards: Sequence[str]) -> None:
    """Raise ArtifactError if a shard is listed twice, also by different addresses of the same path."""
    depth, seen = distinct_depth(shards), dict[str, str]()
    for shard in shards:
        ending = last_parts(shard, depth)
        if ending in seen:
            fault = f"Two shards of the clusters have the same path {ending}: {seen[ending]} and {shard}."
            raise ArtifactError(f"{fault} Run clip-negatives prepare again, and name each tar once, by path or URL.")
        seen[ending] = shard


def distinct_depth(addresses: Sequence[str]) -> int:
    """Return the smallest number of last path components that tells all shards apart."""
    deepest = max(len(address.split("/")) for address in addresses)
    depths = (d for d in range(1, deepest) if len({last_parts(address, d) for address in addresses}) == len(addresses))
    return next(depths, deepest)
