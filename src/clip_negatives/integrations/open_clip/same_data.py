"""Whether the clusters that are named are of the data that is trained on."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.dataset import CsvPairs
from clip_negatives.dataset.urls import expand_urls, is_plain
from clip_negatives.errors import ArtifactError
from clip_negatives.integrations.open_clip.train_set import kind_of
from clip_negatives.labels import TrainedOn

LOOKED_AT = 100_000
"""Files whose time of change is looked at, evenly spaced among all: a disk on a network answers slowly."""

TOLERANCE = 1.0
"""Seconds: a manifest gives whole ones."""


def check_same_data(folder: ClustersFolder, source: CsvPairs) -> None:
    """Make sure that clusters are of the data that is trained on, text by text and path by path.

    Raises:
        ArtifactError: they are not. Of a stream it is found by key, as it is read.
    """
    fault = _difference("text", source.texts, folder.samples["text"].to_pylist())
    if fault is None and "image" in folder.samples.column_names:
        fault = _difference("image", source.image_paths, folder.samples["image"].to_pylist())
    if fault is not None:
        raise ArtifactError(
            f"Expected clusters of the data that is trained on, got {folder.path} of other data ({fault}). "
            "Prepare it again: clip-negatives prepare."
        )


def tell_of_newer_data(folder: TrainedOn, args: Namespace) -> None:
    """Warn where what is trained on changed after the clusters that are named were made of it; see `tell_of_newer`."""
    if isinstance(folder, ClustersFolder) and "image" in folder.samples.column_names:
        tell_of_newer(folder.path, folder.manifest, "pictures", _some(folder.samples["image"]))
    elif kind_of(args) == "webdataset":
        shards = [shard for shard in expand_urls(args.train_data) if is_plain(shard)]
        tell_of_newer(folder.path, folder.manifest, "tars", _some(pa.array(shards, pa.string())))


def tell_of_newer(path: Path, manifest: Mapping[str, Any], what: str, files: Sequence[str]) -> None:
    """Warn where files of this machine changed after the clusters were made of them.

    It is no error, as a copy of the data may have later times too. Files that cannot be asked for are left to who reads them.

    Args:
        path: folder of the clusters.
        manifest: its manifest; where it does not say when it was made, nothing is looked at.
        what: the files are, in the plural.
        files: their paths.
    """
    made = _seconds(manifest.get("clusters_created", manifest.get("created")))
    if made is None:
        return
    with ThreadPoolExecutor() as pool:
        newer = [file for file, changed in zip(files, pool.map(_changed, files), strict=True) if changed > made + TOLERANCE]
    if newer:
        logging.warning(
            f"clip-negatives: {len(newer)} of the {len(files)} {what} that were looked at changed after the clusters in {path} "
            f"were made, {newer[0]} among them. A copy of the data is fine; where they were replaced, prepare them again."
        )


def _some(files: pa.Array | pa.ChunkedArray) -> list[str]:
    """Return each file once, of more than are looked at some that are evenly spaced."""
    places = range(0, len(files), -(-len(files) // LOOKED_AT) or 1)
    return list(dict.fromkeys(files.take(pa.array(places, pa.int64())).to_pylist()))


def _changed(file: str) -> float:
    """Return the time of change of a file, in seconds since 1970; 0 where it cannot be asked for."""
    try:
        return Path(file).stat().st_mtime
    except (OSError, ValueError):  # a name with a zero byte in it
        return 0.0


def _seconds(created: object) -> float | None:
    """Return the time that a manifest gives, in seconds since 1970, or None where it gives none."""
    try:
        return datetime.fromisoformat(str(created)).timestamp()
    except (ValueError, OverflowError):
        return None


def _difference(what: str, trained: Sequence[str], clustered: Sequence[str]) -> str | None:
    """Say where two columns differ, or None."""
    if len(trained) != len(clustered):
        return f"{len(clustered)} rows for {len(trained)}"
    row = next((row for row, (a, b) in enumerate(zip(trained, clustered, strict=True)) if a != b), None)
    return None if row is None else f"the {what} of row {row} differs"
