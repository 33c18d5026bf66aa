"""Tars of a table of assignments, and the tars to train on: whether they are the same, and their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from clip_negatives.advice import argument
from clip_negatives.dataset.urls import expand_urls, is_plain, shard_source
from clip_negatives.errors import DataError
from clip_negatives.progress import stage
from clip_negatives.storage.shards import distinct_depth, last_parts
from clip_negatives.storage.source_files import SourceFile
from clip_negatives.training.same_data import map_files


def shard_sources(shards: Sequence[str], data: str | None, encoded: Mapping[str, SourceFile]) -> dict[str, SourceFile]:
    """Return size and digest of each shard of the table, by its name.

    They are those of `data`, or else those in `encoded`, or else unknown.

    Raises:
        DataError: a name in the table is not that of a tar, or the tars of `data` are not those in the table.
    """
    depth, known = distinct_depth(shards), dict[str, str]()
    for shard in shards:
        if other := known.get(ending := last_parts(shard, depth)):
            raise DataError(f"The table has two names of the tar {ending}: {other} and {shard}. Write one of them in all rows.")
        known[ending] = shard
    if data is None:
        _check_names(shards)
        return {shard: encoded.get(shard, SourceFile(shard, None, "")) for shard in shards}
    given = dict[str, str]()
    for address in expand_urls(data):
        if other := given.get(ending := last_parts(address, depth)):
            raise DataError(f"{argument('data')} names two tars {ending}: {other} and {address}. Name each tar once.")
        given[ending] = address
    without_samples = {last_parts(tar, depth) for tar in encoded} - known.keys()
    _check_same(known, {ending: tar for ending, tar in given.items() if ending not in without_samples})
    addresses = [given[ending] for ending in known]
    with stage("Reading the tars"):
        return dict(zip(known.values(), map_files(shard_source, addresses, chunk=1), strict=True))


def _check_names(shards: Sequence[str]) -> None:
    for shard in shards:
        if is_plain(shard) and not re.search(r"\.(tar|tgz)(\.\w+)?$", shard):
            options = f"{argument('shard')}, or name the tars with {argument('shard_pattern')}"
            raise DataError(f"The table names the tar {shard!r}, but names of tars end in .tar. Correct {options}.")


def _check_same(known: dict[str, str], given: dict[str, str]) -> None:
    """Raise DataError if tars of the table are not given, or given tars are not in the table, by their last path components."""
    if missing := [shard for ending, shard in known.items() if ending not in given]:
        fault = f"{argument('data')} lacks {_counted(missing)} of the table"
        raise DataError(f"{fault}. Name all clustered tars, or leave the rows of the others out of the table.")
    if extra := [address for ending, address in given.items() if ending not in known]:
        fault = f"The table has no sample of {_counted(extra)} of {argument('data')}"
        raise DataError(f"{fault}. Name the clustered tars alone, or add rows for the others.")


def _counted(shards: Sequence[str]) -> str:
    return f"the tar {shards[0]}" + (f" and {len(shards) - 1} more" if len(shards) > 1 else "")
