"""Read and write a clusters folder: safetensors, parquet and JSON, never pickle; written whole or not at all.

A folder holds ``manifest.json`` (what it was made from, and the size and SHA-256 of the other files),
``clusters.safetensors`` (labels and centroids), ``samples.parquet`` (key, text, and where known image path, group
and tar of each sample) and, if kept, ``features.safetensors``, which is memory-mapped when it is read. Where samples
of the data were left out because they are damaged, ``broken.parquet`` has their keys and the reasons.
"""

from __future__ import annotations

import dataclasses
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

from clip_negatives.atomic import replaced_folder, write_tensors
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.manifests import FolderKind
from clip_negatives.reading import Kind, open_table, read_table, read_tensors
from clip_negatives.similarity import similarities
from clip_negatives.soundness import fault_of, fault_of_table

MANIFEST, CLUSTERS, SAMPLES, SHARDS, FEATURES, BROKEN = (
    "manifest.json",
    "clusters.safetensors",
    "samples.parquet",
    "shards.parquet",
    "features.safetensors",
    "broken.parquet",
)

CLUSTERS_FOLDER = FolderKind("clusters", MANIFEST, (CLUSTERS, SAMPLES), make="clip-negatives prepare", again="Prepare it again")
LABELS_FOLDER = FolderKind("labels", "labels.json", (CLUSTERS, SHARDS), make="clip-negatives labels", again="Write it again")

COLUMNS = ("image", "group", "shard")
"""Columns that the table of samples may have beside key and text."""

KINDS: dict[str, Kind] = {
    f"{side}_{what}": kind
    for side in ("image", "text")
    for what, kind in (("labels", (("int64",), 1)), ("centroids", (("float32",), 2)))
}
"""What the tensors of the clusters are."""


@dataclass(frozen=True, slots=True)
class ClustersFolder:
    """Hold what a clusters folder says.

    Attributes:
        path: the folder.
        clusters: the clusters; features are memory-mapped, or None if they were not kept.
        samples: columns key and text, and where known image, group and shard, all strings; row i is sample i.
        manifest: what the folder was made from.
    """

    path: Path
    clusters: Clusters
    samples: pa.Table
    manifest: Mapping[str, Any]

    @property
    def broken(self) -> pa.Table:
        """Return the samples that were left out, columns key and reason, both strings; read when asked for.

        Raises:
            ArtifactError: they are damaged.
        """
        if BROKEN in self.manifest.get("files", ()):
            try:
                return read_table(self.path / BROKEN, ("key", "reason"))
            except (OSError, ValueError) as error:
                raise CLUSTERS_FOLDER.damaged(self.path, f"{BROKEN}: {error}") from error
        return pa.table({"key": pa.array([], pa.string()), "reason": pa.array([], pa.string())})


def write_clusters(path: str | Path, clusters: Clusters, samples: pa.Table, manifest: Mapping[str, Any]) -> None:
    """Write a clusters folder, atomically: it appears under its name when it is whole.

    Args:
        path: folder to make; an older clusters folder there is replaced.
        clusters: labels, centroids and, if they are to be kept, features.
        samples: columns key (all different) and text, and where known image, group and shard; one row a sample.
        manifest: more entries for the manifest, as JSON takes them.

    Raises:
        ArtifactError: there is something else under that name, it cannot be written, or clusters and table do not fit.
    """
    fault = _misfit(clusters, samples)
    if fault is None and pc.count_distinct(samples["key"]).as_py() < samples.num_rows:
        fault = "a key repeats"
    if fault is not None:
        raise _unfit(fault)
    with _written(Path(path), clusters.image, clusters.text, manifest) as folder:
        pq.write_table(samples, folder / SAMPLES, compression="zstd")
        if clusters.image_features is not None and clusters.text_features is not None:
            features = {"image": clusters.image_features, "text": clusters.text_features}
            write_tensors(features, folder / FEATURES)


def write_clusters_of(
    path: str | Path, image: Clustering, text: Clustering, files: Sequence[Path], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a clusters folder as `write_clusters` does, of a table and features that are files already and never in memory.

    Returns the whole manifest.

    Args:
        path: folder to make, on the disk of the files; an older clusters folder there is replaced.
        image: clusters of the images.
        text: clusters of the texts.
        files: ``samples.parquet``, whose keys are all different, and what else goes in; they are moved as the last thing.
        manifest: more entries for the manifest, as JSON takes them.

    Raises:
        ArtifactError: there is something else under that name, it cannot be written, or clusters and table do not fit.
    """
    table = pq.ParquetFile(next(file for file in files if file.name == SAMPLES))
    fault = fault_of(image, text, {}, table.metadata.num_rows, table.schema_arrow.names)
    if fault is not None:
        raise _unfit(fault)
    with _written(Path(path), image, text, manifest, files):
        pass
    return CLUSTERS_FOLDER.read_manifest(Path(path))


@contextmanager
def _written(
    path: Path, image: Clustering, text: Clustering, manifest: Mapping[str, Any], moved: Sequence[Path] = ()
) -> Iterator[Path]:
    """Give a folder with the clusters, to which a manifest and files of elsewhere are added when the block ends well."""
    with replaced_folder(path, known_by=MANIFEST) as folder:
        write_tensors(_tensors(image, text), folder / CLUSTERS)
        yield folder
        listed = sorted([*folder.iterdir(), *moved], key=lambda item: item.name)
        CLUSTERS_FOLDER.write_manifest(folder, {**manifest, **_counts(image, text)}, listed)
        for item in moved:  # once nothing slow is left: a process that is killed takes with it what is in the folder
            item.rename(folder / item.name)


def read_clusters(path: str | Path) -> ClustersFolder:
    """Read a clusters folder and make sure that it is whole and fits together.

    Sums are checked of all but the features, whose size is, as they may be large.

    Raises:
        ArtifactError: it is missing, of another format, damaged, or its parts do not fit.
    """
    path = Path(path)
    manifest, clusters = whole_clusters(path)
    try:
        samples = read_table(path / SAMPLES, ("key", "text"), COLUMNS, rows=clusters.n_samples)
    except (OSError, ValueError) as error:
        raise CLUSTERS_FOLDER.damaged(path, f"{SAMPLES}: {error}") from error
    groups = codes(samples["group"]) if "group" in samples.column_names else None
    clusters = dataclasses.replace(clusters, texts=codes(samples["text"]), groups=groups)
    _check_fit(path, manifest, clusters, samples.num_rows, samples.column_names)
    return ClustersFolder(path, clusters, samples, manifest)


def map_clusters(path: str | Path) -> tuple[Clusters, Mapping[str, Any]]:
    """Return the clusters of a folder, memory-mapped, and its manifest, without the table of samples.

    The clusters know neither texts nor groups. Sums are checked of all but the features.

    Raises:
        ArtifactError: as `read_clusters`.
    """
    path = Path(path)
    manifest, clusters = whole_clusters(path)
    try:
        table = open_table(path / SAMPLES, ("key", "text"), COLUMNS)
    except (OSError, ValueError) as error:
        raise CLUSTERS_FOLDER.damaged(path, f"{SAMPLES}: {error}") from error
    _check_fit(path, manifest, clusters, table.metadata.num_rows, table.schema_arrow.names)
    return clusters, manifest


def whole_clusters(path: Path) -> tuple[dict[str, Any], Clusters]:
    """Return manifest and clusters, memory-mapped, once all files are there and, but for the features, have their sums."""
    if LABELS_FOLDER.is_at(path):
        raise ArtifactError(
            f"Expected a clusters folder at {path}, got a labels folder, which is for training on webdataset streams alone. "
            "Name the clusters folder that it was made from."
        )
    manifest = CLUSTERS_FOLDER.read_manifest(path)
    CLUSTERS_FOLDER.check_files(path, manifest, unsummed=(FEATURES,))
    kept = dict.fromkeys(("image", "text"), (("float32", "float16"), 2))
    try:
        tensors = read_tensors(path / CLUSTERS, KINDS)
        features = read_tensors(path / FEATURES, kept) if FEATURES in manifest["files"] else {}
    except (OSError, ValueError) as error:
        raise CLUSTERS_FOLDER.damaged(path, error) from error
    image = Clustering(tensors["image_labels"], tensors["image_centroids"])
    text = Clustering(tensors["text_labels"], tensors["text_centroids"])
    shapes = {name: tuple(tensor.shape) for name, tensor in features.items()}
    if (fault := fault_of(image, text, shapes, image.n_samples, ("key", "text"))) is not None:
        raise CLUSTERS_FOLDER.damaged(path, fault)
    found: dict[str, Any] = {"image_features": features.get("image"), "text_features": features.get("text")}
    return manifest, Clusters(image, text, **similarities(image, text), **found)


def _check_fit(path: Path, manifest: Mapping[str, Any], clusters: Clusters, rows: int, columns: Sequence[str]) -> None:
    """Refuse a table of samples, or counts in the manifest, that are of other data than the clusters."""
    fault = fault_of_table(clusters.n_samples, rows, columns)
    if fault is None and any(manifest.get(name) != count for name, count in _counts(clusters.image, clusters.text).items()):
        fault = f"{MANIFEST} gives other counts"
    if fault is not None:
        raise CLUSTERS_FOLDER.damaged(path, fault)


def codes(values: pa.ChunkedArray | pa.Array | Sequence[str]) -> Tensor:
    """Return a number for each value, equal for equal values, int64, shape (N,); an empty value equals no other.

    Examples:
        >>> codes(["shoe", "", "hat", "", "shoe"])
        tensor([0, 5, 2, 6, 0])
    """
    column = pa.array(values, pa.string()) if not isinstance(values, pa.Array | pa.ChunkedArray) else values
    chunks = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    # Chunk by chunk: one array of strings holds 2 GiB of them at most.
    encoded = pc.fill_null(chunks, "").dictionary_encode().unify_dictionaries()
    indices = [chunk.indices.to_numpy(zero_copy_only=False).astype(np.int64) for chunk in encoded.chunks]
    number = np.concatenate([np.empty(0, np.int64), *indices])
    empty = encoded.chunk(0).dictionary.index("").as_py() if encoded.num_chunks else -1
    unknown = (number == empty).nonzero()[0]
    number[unknown] = len(number) + np.arange(len(unknown))
    return torch.from_numpy(number)


def _tensors(image: Clustering, text: Clustering) -> dict[str, Tensor]:
    return {
        "image_labels": image.labels,
        "image_centroids": image.centroids,
        "text_labels": text.labels,
        "text_centroids": text.centroids,
    }


def _counts(image: Clustering, text: Clustering) -> dict[str, int]:
    return {"n_samples": image.n_samples, "n_image_clusters": image.n_clusters, "n_text_clusters": text.n_clusters}


def _misfit(clusters: Clusters, samples: pa.Table) -> str | None:
    """Say what keeps parts that are each sound from being of the same data, or None."""
    features = {"image": clusters.image_features, "text": clusters.text_features}
    shapes = {name: tuple(tensor.shape) for name, tensor in features.items() if tensor is not None}
    return fault_of(clusters.image, clusters.text, shapes, samples.num_rows, samples.column_names)


def _unfit(fault: str) -> ArtifactError:
    return ArtifactError(f"Expected clusters and samples that fit together, got some that do not: {fault}.")
