"""Readers of clusters and labels folders, and what writes pairs of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from folders import Folder, write_clusters_folder, write_labels_folder
from reader import Reader

from clip_negatives.artifacts import ClustersFolder, read_clusters
from clip_negatives.errors import ArtifactError, InputError
from clip_negatives.extra_texts import Captions
from clip_negatives.generate import generate
from clip_negatives.labels import read_labels
from clip_negatives.report.album import images_of
from clip_negatives.report.inspection.tables import origin


def use(folder: ClustersFolder, kind: str) -> None:
    """Use what was read as samplers, weightings and reports do, as far as it can have come from the file that was changed."""
    clusters = folder.clusters
    for side, table in ((clusters.image, clusters.image_similarity), (clusters.text, clusters.text_similarity)):
        assert int(side.sizes().min()) > 0
        assert bool((side.centroids[side.labels].isfinite()).all())
        assert bool((table.abs() < 1.001).all())
    if kind.endswith("samples.parquet"):
        captions = Captions(folder.samples)
        assert len(captions[:]) == len(captions) == clusters.n_samples
        json.dumps(folder.samples.to_pylist())
        images = images_of(folder, None)
        assert images is None or list(images([0], 8)) == [None]
    elif kind.endswith("json"):
        origin(folder)
    elif kind.endswith("broken.parquet"):
        json.dumps(folder.broken.to_pylist())


def manifest(scratch: Path) -> Reader:
    """Return the reader of clusters folders, given other manifests."""
    return _clusters(scratch, "values, keys and bytes of manifest.json changed", "manifest.json")


def clustering(scratch: Path) -> Reader:
    """Return it, given other tensors."""
    return _clusters(scratch, "headers and numbers of tensors changed", "clusters.safetensors", "features.safetensors")


def samples(scratch: Path) -> Reader:
    """Return it, given other tables."""
    return _clusters(scratch, "columns, rows and bytes of tables changed", "samples.parquet", "broken.parquet")


def _clusters(scratch: Path, what: str, *names: str) -> Reader:
    write_clusters_folder(scratch / "clusters")
    folder = Folder(scratch / "clusters", "manifest.json")

    def read(kind: str, content: bytes) -> None:
        folder.take(kind, content)
        try:
            use(read_clusters(folder.path), kind)
        finally:
            folder.check()

    return Reader(what, (ArtifactError,), lambda rng: folder.make(rng.choice(names), rng), read)


def labels(scratch: Path) -> Reader:
    """Return the reader of labels folders."""
    write_labels_folder(scratch / "labels")
    folder = Folder(scratch / "labels", "labels.json")
    shards = [row["shard"] for row in pq.read_table(scratch / "labels" / "shards.parquet").to_pylist()]

    def read(kind: str, content: bytes) -> None:
        folder.take(kind, content)
        try:
            found = read_labels(folder.path)
            found.shards.check(shards)
            for shard in shards:
                for image, text in found.shards.of(shard).values():
                    assert 0 <= image < found.clusters.image.n_clusters
                    assert 0 <= text < found.clusters.text.n_clusters
        finally:
            folder.check()

    return Reader(
        "any file of a labels folder changed",
        (ArtifactError,),
        lambda rng: folder.make(rng.choice(list(folder.whole)), rng),
        read,
    )


def pairs(scratch: Path) -> Reader:
    """Return what writes incorrect pairs: of a changed folder there are all of them, or no file at all."""
    write_clusters_folder(scratch / "clusters")
    folder, output = Folder(scratch / "clusters", "manifest.json"), scratch / "out" / "pairs.parquet"
    output.parent.mkdir()
    names = ("manifest.json", "clusters.safetensors", "samples.parquet")

    def read(kind: str, content: bytes) -> None:
        folder.take(kind, content)
        try:
            count = generate(folder.path, output)
            assert pq.read_metadata(output).num_rows == count > 0
            output.unlink()
        finally:
            folder.check()
            assert not any(output.parent.iterdir())

    return Reader(
        "a file of the clusters folder changed",
        (ArtifactError, InputError),
        lambda rng: folder.make(rng.choice(names), rng),
        read,
    )
