"""Labels folders for webdataset streams: one small parquet file per shard, so that no process holds the labels of all samples.

| file | content |
|---|---|
| ``labels.json`` | data and settings of the clusters; size of every other file, and SHA-256 of the next two |
| ``clusters.safetensors`` | centroids, and the number of samples of each cluster |
| ``shards.parquet`` | for each shard: name, labels file with SHA-256, number of samples; if known, size and digest of the tar |
| ``shards/*.parquet`` | labels of a shard: columns ``__key__``, ``image_label``, ``text_label`` and ``text_digest`` |
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_negatives.clustering.similarity import similarities
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.progress import stage
from clip_negatives.storage.atomic import digest, write_tensors
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.consistency import MODALITIES, check_counts, tensor_specs
from clip_negatives.storage.manifest import CLUSTERS, LABELS_FOLDER, OWN_ENTRIES, SHARDS
from clip_negatives.storage.safe_reading import check_file, read_table, read_tensors
from clip_negatives.storage.sharded_samples import LABEL_COLUMNS, ShardedSamples
from clip_negatives.storage.shards import KnownShards, check_distinct, distinct_depth, last_parts
from clip_negatives.storage.source_files import SourceFile


@dataclass(frozen=True, slots=True)
class ShardLabels(KnownShards):
    """Labels of each shard.

    Attributes:
        files: labels file and its SHA-256, by the last path components of the shard.
        n_clusters: number of image and of text clusters.
    """

    files: Mapping[str, tuple[str, str]]
    n_clusters: tuple[int, int]

    def check(self, addresses: Sequence[str]) -> None:
        """Raise ArtifactError if two shards have the same last path components, because both would get the same labels."""
        self._check_distinct(addresses, self.files)

    def of(self, address: str) -> Mapping[str, tuple[int, int, str]]:
        """Return image label, text label and digest of the text of each sample of a shard, by key.

        The mapping is empty for a shard that was not clustered. Digests are "" if an older version wrote the labels.

        Args:
            address: path or URL of the shard, or of a copy with the same last path components.

        Raises:
            ArtifactError: the labels file is damaged.
        """
        entry = self.files.get(self.ending(address))
        return {} if entry is None else _read_shard(self.folder / entry[0], entry[1], self.n_clusters)

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the name of each shard, and its labels as `ShardedSamples.tables` does; memory holds one shard at a time.

        Raises:
            ArtifactError: a labels file is damaged.
        """
        for ending, (file, sha256) in self.files.items():
            name = self.sources[ending].file if self.sources else ending
            yield name, _read_table(self.folder / file, sha256, self.n_clusters)


@dataclass(frozen=True)  # without slots: `clusters` is stored in the instance
class LabelsFolder:
    """Contents of a labels folder.

    Attributes:
        image: image clusters, with `Clustering.counts` instead of labels.
        text: text clusters, likewise.
        manifest: data and settings of the clusters.
    """

    path: Path
    image: Clustering
    text: Clustering
    manifest: Mapping[str, Any]
    shards: ShardLabels

    @functools.cached_property
    def clusters(self) -> Clusters:
        """Return the clusters; the similarities between them are computed on first use."""
        return Clusters(self.image, self.text, **similarities(self.image, self.text))


ClustersOrLabels = ClustersFolder | LabelsFolder  # folder that a training run reads its clusters from


def write_labels(clusters_folder: str | Path, output: str | Path) -> LabelsFolder:
    """Write the labels of a clusters folder that was made from tars, atomically. Memory holds one shard at a time.

    Raises:
        ArtifactError: the clusters folder is damaged or not made from tars, or `output` cannot be written.
    """
    source = ShardedSamples(Path(clusters_folder))
    origin = {**source.manifest, "clusters_created": source.manifest.get("created")}
    return write_shard_labels((source.image, source.text), source.tables(), output, source.sources(), origin)


def write_shard_labels(
    clusterings: tuple[Clustering, Clustering],
    shards: Iterable[tuple[str, pa.Table]],
    output: str | Path,
    sources: Mapping[str, SourceFile],
    origin: Mapping[str, Any],
) -> LabelsFolder:
    """Write a labels folder.

    Args:
        clusterings: image and text clusters.
        shards: name and labels of each shard, see `ShardedSamples.tables`.
        output: the folder.
        sources: size and digest of each shard, by its name.
        origin: manifest of the clusters, read after the last shard; its `OWN_ENTRIES` are left out.
    """
    with LABELS_FOLDER.replacing(output) as folder, stage("Writing labels", len(sources), "shards") as running:
        (folder / "shards").mkdir()
        rows: list[dict[str, Any]] = []
        for shard, table in shards:
            name = f"shards/{len(rows):06d}.parquet"
            pq.write_table(table, folder / name, compression="zstd", use_dictionary=False)
            tar = sources.get(shard, SourceFile(shard, None, ""))
            row = {"shard": shard, "file": name, "samples": table.num_rows, "sha256": digest(folder / name)}
            rows.append({**row, "shard_bytes": tar.size, "shard_sha256": tar.sha256})
            running.advance()
        check_distinct([row["shard"] for row in rows])
        table = pa.Table.from_pylist(rows)
        sizes = table["shard_bytes"].cast(pa.int64())  # the type would be null if no size is known
        table = table.set_column(table.column_names.index("shard_bytes"), "shard_bytes", sizes)
        pq.write_table(table, folder / SHARDS, compression="zstd")
        image, text = clusterings
        centroids = {"image_centroids": image.centroids, "text_centroids": text.centroids}
        write_tensors(centroids | {"image_counts": image.sizes(), "text_counts": text.sizes()}, folder / CLUSTERS)
        about = {name: value for name, value in origin.items() if name not in OWN_ENTRIES}
        labels = (folder / row["file"] for row in rows)
        LABELS_FOLDER.write_digests(folder, about, [folder / CLUSTERS, folder / SHARDS], labels)
    return read_labels(output)


def read_labels(path: str | Path) -> LabelsFolder:
    """Read a labels folder; the labels of a shard are read when a stream reaches it.

    Raises:
        ArtifactError: the folder is missing, of another format, or damaged.
    """
    path = Path(path)
    return LABELS_FOLDER.unchanged(path, lambda: _read_labels(path))


def _read_labels(path: Path) -> LabelsFolder:
    manifest = LABELS_FOLDER.read_manifest(path)
    with LABELS_FOLDER.reading(path, CLUSTERS):
        tensors = read_tensors(path / CLUSTERS, tensor_specs("counts"))
        no_labels = torch.empty(0, dtype=torch.int64)
        image, text = (Clustering(no_labels, tensors[f"{name}_centroids"], tensors[f"{name}_counts"]) for name in MODALITIES)
        check_counts(image)
        check_counts(text)
    with LABELS_FOLDER.reading(path, SHARDS):
        table = read_table(path / SHARDS, ("shard", "file", "sha256"), ("shard_sha256",), integers=("shard_bytes",))
        shards, files, digests = (table[name].to_pylist() for name in ("shard", "file", "sha256"))
        if not shards or any(Path(file).parent != Path("shards") for file in files):
            raise ValueError("no shards, or files outside the folder")
    depth = distinct_depth(shards)
    endings = [last_parts(shard, depth) for shard in shards]
    entries = dict(zip(endings, zip(files, digests, strict=True), strict=True))
    sources = {}
    if {"shard_bytes", "shard_sha256"} <= set(table.column_names):
        columns = (shards, table["shard_bytes"].to_pylist(), (sha or "" for sha in table["shard_sha256"].to_pylist()))
        sources = dict(zip(endings, map(SourceFile, *columns), strict=True))
    labels = ShardLabels(path, depth, sources, entries, (image.n_clusters, text.n_clusters))
    return LabelsFolder(path, image, text, manifest, labels)


@functools.lru_cache(maxsize=1)  # a stream reads its shards one after another
def _read_shard(file: Path, sha256: str, n_clusters: tuple[int, int]) -> Mapping[str, tuple[int, int, str]]:
    keys, *labels = (column.to_pylist() for column in _read_table(file, sha256, n_clusters).columns)
    return dict(zip(keys, zip(*labels, strict=True), strict=True))


def _read_table(file: Path, sha256: str, n_clusters: tuple[int, int]) -> pa.Table:
    """Read a labels file; text digests are "" if an older version wrote it."""
    key, *labels, text_digest = LABEL_COLUMNS
    try:
        check_file(file)
        if digest(file) != sha256:
            raise ValueError("changed after it was written")
        table = read_table(file, (key,), (text_digest,), dict(zip(labels, n_clusters, strict=True)))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"The labels {file} cannot be read: {error}. Run clip-negatives labels again.") from error
    if text_digest not in table.column_names:
        table = table.append_column(text_digest, pa.array([""] * table.num_rows, pa.string()))
    return table.select(list(LABEL_COLUMNS))
