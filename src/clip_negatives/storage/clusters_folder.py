"""Read and write a clusters folder, in safetensors, parquet and JSON (no pickle).

A folder has ``manifest.json`` (data and settings, size and SHA-256 of the other files), ``clusters.safetensors``
(labels and centroids), ``samples.parquet`` (key and text of each sample, and its image path, size of the image file, group and
tar if known) and, if they were kept, ``features.safetensors``, which is memory-mapped. ``broken.parquet`` lists damaged samples
that were skipped, ``sources.parquet`` has size and digest of each tar or of a few images.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clip_negatives.clustering.similarity import similarities
from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.storage.atomic import write_tensors
from clip_negatives.storage.consistency import MODALITIES, check_parts, tensor_specs
from clip_negatives.storage.manifest import CLUSTERS, CLUSTERS_FOLDER, MANIFEST, SAMPLES, check_clusters
from clip_negatives.storage.ownership import move_from_work
from clip_negatives.storage.safe_reading import open_table, read_table, read_tensors
from clip_negatives.storage.source_files import SOURCES, SourceFile, read_sources, write_sources

MISSING_TEXT = "nan"  # in a csv file: open_clip trains on it where the text is missing
FEATURES, BROKEN = "features.safetensors", "broken.parquet"

OPTIONAL_COLUMNS = ("image", "group", "shard")  # strings in the table of samples, besides key and text
BYTES = "bytes"  # optional column of the table of samples: size of the image file, int64


@dataclass(frozen=True, slots=True)
class ClustersFolder:
    """Contents of a clusters folder.

    Attributes:
        clusters: features are memory-mapped, or None if they were not kept.
        samples: columns key and text, and image, group and shard if known, all strings, and bytes (size of the image file,
            int64) if known; row i is sample i.
        manifest: data and settings of the clusters.
    """

    path: Path
    clusters: Clusters
    samples: pa.Table
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return a digest of the clusters and the samples."""
        files = self.manifest.get("files", {})
        return hashlib.sha256(
            "".join(files[name]["sha256"] for name in (CLUSTERS, SAMPLES) if name in files).encode()
        ).hexdigest()

    @property
    def broken(self) -> pa.Table:
        """Read the table of skipped samples: columns key, reason and shard (ArtifactError if the file is damaged)."""
        if BROKEN in self.manifest.get("files", ()):
            with CLUSTERS_FOLDER.reading(self.path, BROKEN):
                return read_table(self.path / BROKEN, ("key", "reason", "shard"))
        return pa.schema([(name, pa.string()) for name in ("key", "reason", "shard")]).empty_table()

    @property
    def sources(self) -> list[SourceFile]:
        """Read the source files, see `sources_in`."""
        return sources_in(self.path, self.manifest)


def sources_in(path: Path, manifest: Mapping[str, Any]) -> list[SourceFile]:
    """Read the source files of a clusters folder, none if an older version wrote it; damage is an ArtifactError."""
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
        samples: columns key (unique, or unique in each shard) and text, and image, bytes, group and shard if known; one row per
            sample.
        manifest: further entries of the manifest, JSON values.
        sources: size and digest of files that the samples were read from, to recognise them before training.

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
    """Move `files` of a work folder, which include ``samples.parquet``, into a new clusters folder, and return its manifest.

    The files and the folder must be on one disk, and the keys unique. See `write_clusters` for the errors, and
    `OwnedFolder.replacing` for `cached`.
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
    tensors = {"image_labels": image.labels, "image_centroids": image.centroids}
    tensors |= {"text_labels": text.labels, "text_centroids": text.centroids}
    write_tensors(tensors, folder / CLUSTERS)
    names = (CLUSTERS, SAMPLES, FEATURES, SOURCES)
    files = sorted([*(folder / name for name in names if (folder / name).exists()), *moved], key=lambda file: file.name)
    entries = CLUSTERS_FOLDER.write_digests(folder, {**manifest, **_counts(image, text)}, files)
    move_from_work(moved, folder)  # last: if the process is killed, files in the temporary folder are lost
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
    clusters, manifest, _ = _open_clusters(path)
    with CLUSTERS_FOLDER.reading(path, SAMPLES):
        samples = read_table(path / SAMPLES, ("key", "text"), OPTIONAL_COLUMNS, integers=(BYTES,))
        if BYTES in samples.column_names and samples[BYTES].null_count:
            raise ValueError(f"a value of its column {BYTES} is missing")
    clusters = dataclasses.replace(clusters, texts=text_ids(samples), groups=group_ids(samples))
    return ClustersFolder(path, clusters, samples, manifest)


def open_clusters(path: Path) -> tuple[Clusters, dict[str, Any], pq.ParquetFile]:
    """Return clusters (memory-mapped, without text and group ids), manifest and open sample table of a folder.

    Errors are those of `read_clusters`, but the values of the sample table are not checked.
    """
    return CLUSTERS_FOLDER.unchanged(path, lambda: _open_clusters(path))


def _open_clusters(path: Path) -> tuple[Clusters, dict[str, Any], pq.ParquetFile]:
    check_clusters(path)
    manifest = CLUSTERS_FOLDER.read_manifest(path, unhashed=(FEATURES,))
    features: dict[str, Tensor] = {}
    with CLUSTERS_FOLDER.reading(path, CLUSTERS):
        tensors = read_tensors(path / CLUSTERS, tensor_specs("labels"))
    if FEATURES in manifest["files"]:
        with CLUSTERS_FOLDER.reading(path, FEATURES):
            features = read_tensors(path / FEATURES, dict.fromkeys(MODALITIES, (("float32", "float16"), 2)))
    with CLUSTERS_FOLDER.reading(path, SAMPLES):
        table = open_table(path / SAMPLES, ("key", "text"), OPTIONAL_COLUMNS, integers=(BYTES,))
    # Copies: the file is mapped, and a file that is overwritten later must not change the labels.
    image, text = (Clustering(*(tensors[f"{name}_{part}"].clone() for part in ("labels", "centroids"))) for name in MODALITIES)
    with CLUSTERS_FOLDER.reading(path):
        check_parts(image, text, features, table.metadata.num_rows, table.schema_arrow.names)
        if any(manifest.get(name) != count for name, count in _counts(image, text).items()):
            raise ValueError(f"{MANIFEST} has wrong counts of samples or clusters")
    stored_features: dict[str, Any] = {f"{name}_features": features.get(name) for name in MODALITIES}
    return Clusters(image, text, **similarities(image, text), **stored_features), manifest, table


def text_ids(samples: pa.Table) -> Tensor:
    """Return an id for each text of a table of samples, int64, shape (N,): equal texts have equal ids.

    Missing texts have ids of their own: empty texts, and in a csv file, which has a column of images, the text "nan".
    """
    texts = samples["text"]
    if "image" in samples.column_names:
        texts = pc.if_else(pc.equal(texts, MISSING_TEXT), "", texts)
    return integer_ids(texts)


def group_ids(samples: pa.Table) -> Tensor | None:
    """Return an id for each group of a table of samples, int64, shape (N,), or None without groups; see `integer_ids`."""
    return integer_ids(samples["group"]) if "group" in samples.column_names else None


def integer_ids(values: pa.ChunkedArray | pa.Array | Sequence[str]) -> Tensor:
    """Return an id for each value, int64, shape (N,): equal values have equal ids, but each empty value has its own id."""
    column = pa.array(values, pa.string()) if not isinstance(values, pa.Array | pa.ChunkedArray) else values
    chunks = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    # Chunk by chunk, because one array of strings is limited to 2 GiB.
    encoded = pc.fill_null(chunks, "").dictionary_encode().unify_dictionaries()
    indices = [chunk.indices.to_numpy(zero_copy_only=False).astype(np.int64) for chunk in encoded.chunks]
    ids = np.concatenate([np.empty(0, np.int64), *indices])
    empty = encoded.chunk(0).dictionary.index("").as_py() if encoded.num_chunks else -1
    unknown = (ids == empty).nonzero()[0]
    ids[unknown] = len(ids) + np.arange(len(unknown))
    return torch.from_numpy(ids)


def _counts(image: Clustering, text: Clustering) -> dict[str, int]:
    return {"n_samples": image.n_samples, "n_image_clusters": image.n_clusters, "n_text_clusters": text.n_clusters}


@contextmanager
def _consistent() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ArtifactError(f"Clusters and samples differ: {error}. Pass a row with a unique key for each sample.") from error
