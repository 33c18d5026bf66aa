"""Read and write clusters folders: safetensors, parquet and JSON files, no pickle.

| file | content |
|---|---|
| ``manifest.json`` | data and settings of the clusters; size and SHA-256 of every other file |
| ``clusters.safetensors`` | labels and centroids |
| ``samples.parquet`` | key and text of each sample; if known, image path, size of the image file, group and tar |
| ``features.safetensors`` | features, if they were kept; the file is memory-mapped |
| ``broken.parquet`` | samples that were skipped, with the reason |
| ``sources.parquet`` | size and digest of each tar, or of a few images |
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.clusters_parts import BYTES, FEATURES, OPTIONAL_COLUMNS, counts_of, open_parts
from clip_negatives.storage.consistency import MODALITIES, check_parts
from clip_negatives.storage.manifest import CLUSTERS, CLUSTERS_FOLDER, SAMPLES
from clip_negatives.storage.ownership import move_from_work
from clip_negatives.storage.safe_reading import read_table
from clip_negatives.storage.sample_ids import group_ids, text_ids
from clip_negatives.storage.source_files import SOURCES, SourceFile, read_sources, write_sources

BROKEN = "broken.parquet"


@dataclass(frozen=True, slots=True)
class ClustersFolder:
    """Contents of a clusters folder.

    Attributes:
        clusters: the clusters; their features are memory-mapped, or None if they were not kept.
        samples: row i is sample i. Columns key and text; if known, image, group and shard (all strings), and bytes (size of
            the image file, int64).
        manifest: data and settings of the clusters.
    """

    path: Path
    clusters: Clusters
    samples: pa.Table
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return a digest of the clusters and the table of samples."""
        files = self.manifest.get("files", {})
        return hashlib.sha256(
            "".join(files[name]["sha256"] for name in (CLUSTERS, SAMPLES) if name in files).encode()
        ).hexdigest()

    @property
    def broken(self) -> pa.Table:
        """Read the table of skipped samples and torn tars: key, reason, shard; ArtifactError if it is damaged."""
        if BROKEN in self.manifest.get("files", ()):
            with CLUSTERS_FOLDER.reading(self.path, BROKEN):
                return read_table(self.path / BROKEN, ("key", "reason", "shard"))
        return pa.schema([(name, pa.string()) for name in ("key", "reason", "shard")]).empty_table()

    @property
    def sources(self) -> list[SourceFile]:
        """Read the source files, see `sources_in`."""
        return sources_in(self.path, self.manifest)


def sources_in(path: Path, manifest: Mapping[str, Any]) -> list[SourceFile]:
    """Read the source files of a clusters folder; an empty list if an older version wrote the folder.

    Raises:
        ArtifactError: the list of source files is damaged.
    """
    if SOURCES not in manifest.get("files", ()):
        return []
    with CLUSTERS_FOLDER.reading(path, SOURCES):
        return read_sources(path / SOURCES)


def write_clusters(
    path: str | Path,
    clusters: Clusters,
    samples: pa.Table,
    manifest: Mapping[str, Any],
    sources: Sequence[SourceFile] = (),
) -> None:
    """Write a clusters folder, atomically.

    Args:
        path: the folder; an older clusters folder is replaced.
        clusters: labels, centroids and, optionally, features to store.
        samples: one row per sample. Columns key and text; if known, image, bytes, group and shard. Keys are unique, or unique
            in each shard.
        manifest: further entries of the manifest, JSON values.
        sources: size and digest of the files that the samples were read from; training compares them with its own files.

    Raises:
        ArtifactError: `path` is not a clusters folder or cannot be written, or clusters and samples are inconsistent.
    """
    features = {name: tensor for name in MODALITIES if (tensor := getattr(clusters, f"{name}_features")) is not None}
    with _consistent():
        check_parts(clusters.image, clusters.text, features, samples.num_rows, samples.column_names)
        identity = [name for name in ("shard", "key") if name in samples.column_names]
        if samples.group_by(identity).aggregate([]).num_rows < samples.num_rows:
            raise ValueError("a key repeats" + " in a shard" * (len(identity) > 1))
    with CLUSTERS_FOLDER.replacing(path) as folder:
        pq.write_table(samples, folder / SAMPLES, compression="zstd")
        if len(features) == len(MODALITIES):
            write_tensors(features, folder / FEATURES)
        if sources:
            write_sources(sources, folder / SOURCES)
        _finish(folder, clusters.image, clusters.text, manifest)


def write_clusters_from_files(
    path: str | Path,
    clusterings: Sequence[Clustering],
    files: Sequence[Path],
    manifest: Mapping[str, Any],
    *,
    cached: bool = False,
) -> dict[str, Any]:
    """Move `files` from a work folder into a new clusters folder, and return its manifest.

    `files` include ``samples.parquet``, whose keys must be unique. The work folder and `path` must be on the same disk. See
    `write_clusters` for the errors, and `OwnedFolder.replacing` for `cached`.
    """
    image, text = clusterings
    table = pq.ParquetFile(next(file for file in files if file.name == SAMPLES))
    with _consistent():
        check_parts(image, text, {}, table.metadata.num_rows, table.schema_arrow.names)
    with CLUSTERS_FOLDER.replacing(path, cached=cached) as folder:
        return _finish(folder, image, text, manifest, files)


def _finish(
    folder: Path, image: Clustering, text: Clustering, manifest: Mapping[str, Any], moved: Sequence[Path] = ()
) -> dict[str, Any]:
    """Write clusters and manifest into `folder`, move the files `moved` into it, and return the manifest."""
    tensors = {"image_labels": image.labels, "image_centroids": image.centroids}
    tensors |= {"text_labels": text.labels, "text_centroids": text.centroids}
    write_tensors(tensors, folder / CLUSTERS)
    names = (CLUSTERS, SAMPLES, FEATURES, SOURCES)
    files = sorted([*(folder / name for name in names if (folder / name).exists()), *moved], key=lambda file: file.name)
    entries = CLUSTERS_FOLDER.write_digests(folder, {**manifest, **counts_of(image, text)}, files)
    move_from_work(moved, folder)  # last, because a killed process loses the files in the temporary folder
    return entries


def read_clusters(path: str | Path) -> ClustersFolder:
    """Read a clusters folder and check that it is complete and consistent.

    The SHA-256 of each file is checked, except for the features, which may be large: only their size is checked.

    Raises:
        ArtifactError: the folder is missing, of another format, damaged or inconsistent.
        InputError: `path` is not a path.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"Expected the path of a clusters folder, got an object of type {type(path).__name__}.")
    path = Path(path)
    return CLUSTERS_FOLDER.unchanged(path, lambda: _read_clusters(path))


def _read_clusters(path: Path) -> ClustersFolder:
    parts = open_parts(path)
    with CLUSTERS_FOLDER.reading(path, SAMPLES):
        samples = read_table(path / SAMPLES, ("key", "text"), OPTIONAL_COLUMNS, integers=(BYTES,))
        if BYTES in samples.column_names and samples[BYTES].null_count:
            raise ValueError(f"a value of its column {BYTES} is missing")
    clusters = dataclasses.replace(parts.clusters, texts=text_ids(samples), groups=group_ids(samples))
    return ClustersFolder(path, clusters, samples, parts.manifest)


@contextmanager
def _consistent() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ArtifactError(f"Clusters and samples differ: {error}. Pass a row with a unique key for each sample.") from error
