"""A labels folder whose files fit their digests and nothing else is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from clip_negatives.artifacts import write_clusters
from clip_negatives.atomic import digest, write_tensors
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.labels import read_labels, write_labels
from clip_negatives.similarity import centroid_similarity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    side = Clustering(torch.tensor([0, 1, 1]), torch.eye(2))
    table = centroid_similarity(side.centroids)
    samples = pa.table({"key": ["a", "b", "c"], "text": ["x", "y", "z"], "shard": ["0.tar", "0.tar", "1.tar"]})
    write_clusters(tmp_path / "clusters", Clusters(side, side, table, table), samples, {})
    write_labels(tmp_path / "clusters", tmp_path / "labels")
    return tmp_path / "labels"


def _sum(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "labels.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
    (folder / "labels.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("text", "fault"),
    [("[" * 100_000, "cannot be read"), ("[]", "cannot be read"), ('{"format": 1, "files": 3}', "does not list the files")],
)
def test_manifest(folder: Path, text: str, fault: str) -> None:
    (folder / "labels.json").write_text(text)
    with pytest.raises(ArtifactError, match=rf"labels\.json {fault}.*Write it again"):
        read_labels(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("image_counts", torch.tensor([1, 2, 3]), "3 sizes"),
        ("image_counts", torch.tensor([3, 0]), "some perhaps 0"),
        ("image_counts", torch.tensor([3.0, 1.0]), "image_counts is float32"),
        ("text_centroids", torch.ones(2), "text_centroids is float32 of shape"),
        ("text_centroids", torch.full((2, 2), torch.nan), "not finite"),
        ("text_centroids", torch.zeros(2, 0), "in 0 dimensions"),
    ],
)
def test_clusters(folder: Path, name: str, tensor: torch.Tensor, words: str) -> None:
    write_tensors(load_file(folder / "clusters.safetensors") | {name: tensor}, folder / "clusters.safetensors")
    _sum(folder, "clusters.safetensors")
    with pytest.raises(ArtifactError, match=rf"{words}.*Write it again"):
        read_labels(folder)


@pytest.mark.parametrize(
    ("file", "words"),
    [("../../etc/passwd", "elsewhere"), ("/etc/passwd", "elsewhere"), (None, "file is missing"), (1, "int64, not strings")],
)
def test_shards(folder: Path, file: object, words: str) -> None:
    table = pq.read_table(folder / "shards.parquet")
    files = pa.array([file] * 2, pa.string() if file is None else None)
    pq.write_table(table.set_column(table.column_names.index("file"), "file", files), folder / "shards.parquet")
    _sum(folder, "shards.parquet")
    with pytest.raises(ArtifactError, match=rf"{words}.*Write it again"):
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
    ("change", "words"),
    [
        (_negative, r"other numbers than 0 \.\. 1"),
        (_unknown, "other numbers"),
        (_twice, "each column of image_label, text_label once"),
        (_numbered, "__key__ holds int64"),
    ],
)
def test_labels_of_a_shard(folder: Path, change: Callable[[pa.Table], pa.Table], words: str) -> None:
    """A label out of range would read memory that is not ours on a GPU, or another cluster's weights."""
    file = folder / "shards" / "000000.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    table = pq.read_table(folder / "shards.parquet")
    sums = pa.array([digest(folder / name) for name in table["file"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("sha256"), "sha256", sums), folder / "shards.parquet")
    _sum(folder, "shards.parquet")
    found = read_labels(folder).shards
    assert found.of("1.tar") == {"c": (1, 1)}
    with pytest.raises(ArtifactError, match=rf"000000\.parquet, got: .*{words}.*Write them again"):
        found.of("0.tar")
