"""A labels folder with valid digests but invalid contents is an error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.storage.atomic import digest, write_tensors
from clip_negatives.storage.clusters_folder import write_clusters
from clip_negatives.storage.digests import text_digest
from clip_negatives.storage.labels_folder import read_labels, write_labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    side = Clustering(torch.tensor([0, 1, 1]), torch.eye(2))
    table = centroid_similarity(side.centroids)
    samples = pa.table({"key": ["a", "b", "c"], "text": ["x", "y", "z"], "shard": ["0.tar", "0.tar", "1.tar"]})
    write_clusters(tmp_path / "clusters", Clusters(side, side, table, table), samples, {})
    write_labels(tmp_path / "clusters", tmp_path / "labels")
    return tmp_path / "labels"


def _update_digest(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "labels.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
    (folder / "labels.json").write_text(json.dumps(manifest))


def test_labels_in_a_pipe_are_not_read(folder: Path) -> None:
    labels = read_labels(folder).shards
    file = folder / "shards" / "000000.parquet"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ArtifactError, match=f"The labels {file} cannot be read: not a regular file"):
        labels.of("0.tar")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, ": nested too deep"),
        ("[]", ": not a JSON object"),
        ('{"format": 1, "files": 3}', ": the list of files is missing"),
    ],
)
def test_manifest(folder: Path, text: str, fault: str) -> None:
    (folder / "labels.json").write_text(text)
    with pytest.raises(ArtifactError, match=rf"labels\.json{fault}.*labels again"):
        read_labels(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("image_counts", torch.tensor([1, 2, 3]), "3 counts"),
        ("image_counts", torch.tensor([3, 0]), "must be above 0"),
        ("image_counts", torch.tensor([3.0, 1.0]), "image_counts is float32"),
        ("text_centroids", torch.ones(2), "text_centroids is float32 of shape"),
        ("text_centroids", torch.full((2, 2), torch.nan), "not finite"),
        ("text_centroids", torch.zeros(2, 0), "in 0 dimensions"),
    ],
)
def test_clusters(folder: Path, name: str, tensor: torch.Tensor, message: str) -> None:
    write_tensors(load_file(folder / "clusters.safetensors") | {name: tensor}, folder / "clusters.safetensors")
    _update_digest(folder, "clusters.safetensors")
    with pytest.raises(ArtifactError, match=rf"{message}.*labels again"):
        read_labels(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../../etc/passwd", "outside the folder"),
        ("/etc/passwd", "outside the folder"),
        (None, "column file has missing values"),
        (1, "int64, not string"),
    ],
)
def test_shards(folder: Path, file: object, message: str) -> None:
    table = pq.read_table(folder / "shards.parquet")
    files = pa.array([file] * 2, pa.string() if file is None else None)
    pq.write_table(table.set_column(table.column_names.index("file"), "file", files), folder / "shards.parquet")
    _update_digest(folder, "shards.parquet")
    with pytest.raises(ArtifactError, match=rf"{message}.*labels again"):
        read_labels(folder)


def _negative(table: pa.Table) -> pa.Table:
    return table.set_column(1, "image_label", pa.array([-1, 0], pa.int32()))


def _unknown(table: pa.Table) -> pa.Table:
    return table.set_column(1, "image_label", pa.array([None, 0], pa.int32()))


def _twice(table: pa.Table) -> pa.Table:
    return table.append_column("text_label", table["text_label"])


def _numbered(table: pa.Table) -> pa.Table:
    return table.set_column(0, "__key__", pa.array([1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_negative, r"labels outside 0 \.\. 1"),
        (_unknown, "column image_label has missing values"),
        (_twice, "2 columns text_label"),
        (_numbered, "__key__ has type int64"),
    ],
)
def test_labels_of_a_shard(folder: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    """On a GPU, a label out of range would read foreign memory, or the weights of another cluster."""
    file = folder / "shards" / "000000.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    table = pq.read_table(folder / "shards.parquet")
    sums = pa.array([digest(folder / name) for name in table["file"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("sha256"), "sha256", sums), folder / "shards.parquet")
    _update_digest(folder, "shards.parquet")
    shards = read_labels(folder).shards
    assert shards.of("1.tar") == {"c": (1, 1, text_digest(b"z"))}
    with pytest.raises(ArtifactError, match=rf"000000\.parquet cannot be read: .*{message}.*labels again"):
        shards.of("0.tar")
