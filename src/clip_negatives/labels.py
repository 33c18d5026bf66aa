"""Labels where a stream reads them: one small parquet file beside each shard, not N labels in the memory of every process.

A labels folder holds ``labels.json`` (what it was made from, and the size and SHA-256 of the other files),
``clusters.safetensors`` (centroids, and how many samples each cluster has), ``shards.parquet`` (one row a shard: name, file,
samples, SHA-256) and ``shards/`` with a parquet file for each, of columns ``__key__``, ``image_label`` and ``text_label``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_negatives.artifacts import CLUSTERS, LABELS_FOLDER, SHARDS, ClustersFolder
from clip_negatives.atomic import digest, replaced_folder, tidy_folder, write_tensors
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.labelled_samples import LabelledSamples
from clip_negatives.reading import Kind, read_columns, read_table, read_tensors
from clip_negatives.similarity import similarities
from clip_negatives.soundness import fault_of_counted

KINDS: dict[str, Kind] = {
    f"{side}_{what}": kind
    for side in ("image", "text")
    for what, kind in (("counts", (("int64",), 1)), ("centroids", (("float32",), 2)))
}
"""What the tensors of the clusters are."""


@dataclass(frozen=True, slots=True)
class ShardLabels:
    """Find the labels of a shard.

    Attributes:
        folder: the labels folder.
        depth: how many last parts of the address of a shard tell it from the others.
        files: file and SHA-256 of each shard's labels, by those parts.
        n_clusters: of images and of texts.
    """

    folder: Path
    depth: int
    files: Mapping[str, tuple[str, str]]
    n_clusters: tuple[int, int]

    def check(self, addresses: Sequence[str]) -> None:
        """Refuse shards of which two would take the labels of one.

        Raises:
            ArtifactError: there are such.
        """
        seen: dict[str, str] = {}
        for address in addresses:
            ending = last_parts(address, self.depth)
            if ending in self.files and seen.setdefault(ending, address) != address:
                raise ArtifactError(
                    f"Expected shards that their last parts tell apart, as those that were clustered, got {seen[ending]} and "
                    f"{address} for the labels of {ending}. Train on the shards that were clustered."
                )

    def of(self, address: str) -> Mapping[str, tuple[int, int]]:
        """Return image and text label of each sample of a shard by its key; none for a shard that was not clustered.

        Args:
            address: path or URL of the shard, also of a copy elsewhere: the last parts count.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        entry = self.files.get(last_parts(address, self.depth))
        return {} if entry is None else _read_shard(self.folder / entry[0], entry[1], self.n_clusters)


@dataclass(frozen=True, slots=True)
class LabelsFolder:
    """Hold what a labels folder says.

    Attributes:
        path: the folder.
        clusters: the clusters, without labels: `Clustering.counts` stands in their place.
        manifest: what the folder was made from.
        shards: where the labels are.
    """

    path: Path
    clusters: Clusters
    manifest: Mapping[str, Any]
    shards: ShardLabels


TrainedOn = ClustersFolder | LabelsFolder
"""What a training run can take its clusters from."""


def write_labels(clusters_folder: str | Path, output: str | Path) -> LabelsFolder:
    """Write the labels of a clusters folder that was prepared from tars, shard by shard, atomically.

    Memory holds the labels of one shard at a time, beside those that are memory-mapped.

    Args:
        clusters_folder: a clusters folder; its features are not read.
        output: folder to make; an older labels folder there is replaced.

    Raises:
        ArtifactError: the clusters folder is damaged or is not of tars, or `output` cannot be written.
    """
    source = LabelledSamples(Path(clusters_folder))
    tidy_folder(Path(output).absolute())
    tables = ((shard, source.table(keys, rows)) for shard, keys, rows in source.shards())
    return write_shard_labels(source, tables, output, {"clusters_created": source.manifest.get("created")})


def write_shard_labels(
    source: LabelledSamples,
    shards: Iterable[tuple[str, pa.Table]],
    output: str | Path,
    more: Mapping[str, Any] | None = None,
) -> LabelsFolder:
    """Write a labels folder of the shards that are given, each with its table of `LabelledSamples.table`, atomically.

    Args:
        source: the samples.
        shards: name and table of each.
        output: folder to make.
        more: entries for the manifest.

    Raises:
        ArtifactError: a shard comes twice, or `output` cannot be written.
    """
    with replaced_folder(Path(output), known_by=LABELS_FOLDER.manifest) as folder:
        (folder / "shards").mkdir()
        rows: list[dict[str, Any]] = []
        for shard, table in shards:
            name = f"shards/{len(rows):06d}.parquet"
            pq.write_table(table, folder / name, compression="zstd", use_dictionary=False)
            rows.append({"shard": shard, "file": name, "samples": table.num_rows, "sha256": digest(folder / name)})
        _check_names([row["shard"] for row in rows])
        pq.write_table(pa.Table.from_pylist(rows), folder / SHARDS, compression="zstd")
        write_tensors(source.counted(), folder / CLUSTERS)
        of_folder = ("format", "package_version", "created", "files")
        made_from = {name: value for name, value in source.manifest.items() if name not in of_folder}
        LABELS_FOLDER.write_manifest(folder, {**made_from, **(more or {})}, [folder / name for name in LABELS_FOLDER.files])
    return read_labels(output)


def read_labels(path: str | Path) -> LabelsFolder:
    """Read a labels folder; the labels of a shard are read when a stream comes to it.

    Raises:
        ArtifactError: it is missing, of another kind or format, or damaged.
    """
    path = Path(path)
    manifest = LABELS_FOLDER.read_manifest(path)
    LABELS_FOLDER.check_files(path, manifest)
    try:
        tensors = read_tensors(path / CLUSTERS, KINDS)
        table = read_table(path / SHARDS, ("shard", "file", "sha256"))
    except (OSError, ValueError) as error:
        raise LABELS_FOLDER.damaged(path, error) from error
    sides = [
        Clustering(torch.empty(0, dtype=torch.int64), tensors[f"{side}_centroids"], tensors[f"{side}_counts"])
        for side in ("image", "text")
    ]
    for side in sides:
        if (fault := fault_of_counted(side)) is not None:
            raise LABELS_FOLDER.damaged(path, fault)
    columns = [table[name].to_pylist() for name in ("shard", "file", "sha256")]
    if any(Path(file).parent != Path("shards") for file in columns[1]) or not columns[0]:
        raise LABELS_FOLDER.damaged(path, f"{SHARDS} names files elsewhere, or none")
    clusters = Clusters(sides[0], sides[1], **similarities(sides[0], sides[1]))
    depth = _depth(columns[0])
    files = {last_parts(shard, depth): (file, sha) for shard, file, sha in zip(*columns, strict=True)}
    n_clusters = clusters.image.n_clusters, clusters.text.n_clusters
    return LabelsFolder(path, clusters, manifest, ShardLabels(path, depth, files, n_clusters))


def is_labels_folder(path: str | Path) -> bool:
    """Return whether a folder is one of labels, as its manifest's name says."""
    return LABELS_FOLDER.is_at(Path(path))


def last_parts(address: str, depth: int) -> str:
    """Return the last `depth` parts of the path of a shard; of a ``pipe:`` those of the last tar that it names.

    Examples:
        >>> last_parts("s3://bucket/a/000.tar", 2), last_parts("pipe:aws s3 cp 's3://bucket/a/000.tar' -", 1)
        ('a/000.tar', '000.tar')
    """
    if address.startswith("pipe:"):
        tars = [
            word for word in re.split(r"[\s'\"]+", address.removeprefix("pipe:")) if re.search(r"\.(tar|tgz)(\.\w+)?$", word)
        ]
        if not tars:
            return address
        address = tars[-1]
    return "/".join(address.split("/")[-depth:])


def _check_names(shards: Sequence[str]) -> None:
    """Refuse shards that their addresses do not tell apart.

    Raises:
        ArtifactError: there are such.
    """
    depth, seen = _depth(shards), dict[str, str]()
    for shard in shards:
        ending = last_parts(shard, depth)
        if ending in seen:
            raise ArtifactError(
                f"Expected shards that their addresses tell apart, each in one piece, got {seen[ending]} and {shard}. "
                "Name them by path or URL, and prepare them again."
            )
        seen[ending] = shard


def _depth(addresses: Sequence[str]) -> int:
    """Return the least number of last parts that tells all shards apart."""
    deepest = max(len(address.split("/")) for address in addresses)
    return next(
        (depth for depth in range(1, deepest) if len({last_parts(one, depth) for one in addresses}) == len(addresses)), deepest
    )


@functools.lru_cache(maxsize=1)  # a process reads one shard after another
def _read_shard(file: Path, sha256: str, n_clusters: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
    try:
        if digest(file) != sha256:
            raise ArtifactError(f"Expected the labels of a shard in {file}, got a file that was changed. Write them again.")
        labels = read_columns(file, dict(zip(("image_label", "text_label"), n_clusters, strict=True)))
        keys = read_table(file, ("__key__",))["__key__"].to_pylist()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"Expected the labels of a shard in {file}, got: {error}. Write them again.") from error
    return dict(zip(keys, zip(*labels, strict=True), strict=True))
