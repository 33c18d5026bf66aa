"""A clusters folder is read as it was written; a damaged one is an error."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.storage import clusters_folder, clusters_parts, manifest
from clip_negatives.storage.atomic import digest, write_tensors
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters, write_clusters
from clip_negatives.storage.clusters_parts import open_clusters
from clip_negatives.storage.manifest import FolderFormat
from clip_negatives.storage.sample_ids import integer_ids

N = 12


def _clustering(k: int, dim: int) -> Clustering:
    centroids = F.normalize(torch.randn(k, dim, generator=torch.Generator().manual_seed(k)), dim=1)
    return Clustering(torch.arange(N) % k, centroids)


def _clusters() -> Clusters:
    image, text = _clustering(3, 4), _clustering(4, 5)
    return Clusters(
        image,
        text,
        centroid_similarity(image.centroids),
        centroid_similarity(text.centroids),
        F.normalize(image.centroids[image.labels], dim=1),
        F.normalize(text.centroids[text.labels], dim=1),
    )


def _samples(n: int = N) -> pa.Table:
    return pa.table({"key": [f"k{row}" for row in range(n)], "text": ["text"] * n, "group": ["a", "b"] * (n // 2)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a clusters folder."""
    write_clusters(tmp_path / "clusters", _clusters(), _samples(), {"seed": 3})
    return tmp_path / "clusters"


def test_what_was_written_is_read(folder: Path) -> None:
    stored, expected = read_clusters(folder), _clusters()
    assert isinstance(stored, ClustersFolder)
    for name in ("image_similarity", "text_similarity", "image_features", "text_features"):
        assert torch.equal(getattr(stored.clusters, name), getattr(expected, name))
    for a, b in ((stored.clusters.image, expected.image), (stored.clusters.text, expected.text)):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.centroids, b.centroids)
    assert stored.samples.equals(_samples())
    assert stored.manifest["seed"] == 3
    assert stored.manifest["n_samples"] == N
    assert {"package_version", "created", "n_image_clusters", "n_text_clusters"} <= set(stored.manifest)


def test_files_are_safetensors_parquet_and_json(folder: Path) -> None:
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".parquet", ".json"}


def test_features_can_be_left_out(tmp_path: Path) -> None:
    clusters = dataclasses.replace(_clusters(), image_features=None, text_features=None)
    write_clusters(tmp_path / "clusters", clusters, _samples(), {})
    assert read_clusters(tmp_path / "clusters").clusters.image_features is None
    assert not (tmp_path / "clusters" / "features.safetensors").exists()


def test_features_are_not_read_until_they_are_used(tmp_path: Path) -> None:
    n, dim = 200_000, 64  # 51 MB each
    clustering = Clustering(torch.zeros(n, dtype=torch.int64), torch.ones(1, dim))
    features = torch.zeros(n, dim)
    clusters = Clusters(clustering, clustering, torch.ones(1, 1), torch.ones(1, 1), features, features.clone())
    keys = pa.array(range(n)).cast(pa.string())
    write_clusters(tmp_path / "clusters", clusters, pa.table({"key": keys, "text": keys}), {})
    before = _resident()
    stored = read_clusters(tmp_path / "clusters")
    assert stored.clusters.image_features is not None
    assert _resident() - before < 60  # of 102 MB
    assert torch.equal(stored.clusters.image_features[7], torch.zeros(dim))


def _resident() -> float:
    """Return the memory of this process that is its own, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))) / 1000


@pytest.mark.parametrize("name", ["clusters.safetensors", "samples.parquet", "features.safetensors", "manifest.json"])
def test_truncated_file_is_refused(folder: Path, name: str) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=rf"{name}.*prepare again"):
        read_clusters(folder)


@pytest.mark.parametrize("name", ["clusters.safetensors", "samples.parquet"])
def test_changed_file_of_the_same_size_is_refused(folder: Path, name: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name}: changed after it was written"):
        read_clusters(folder)


@pytest.mark.parametrize("name", ["clusters.safetensors", "samples.parquet", "features.safetensors"])
def test_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: missing, or of another size"):
        read_clusters(folder)


def _without_files(manifest: dict[str, Any]) -> None:
    del manifest["files"]


def _outside(manifest: dict[str, Any]) -> None:
    manifest["files"]["../other"] = {"bytes": 0, "sha256": ""}


def _unlisted(manifest: dict[str, Any]) -> None:
    del manifest["files"]["samples.parquet"]


def _listed_wrongly(manifest: dict[str, Any]) -> None:
    manifest["files"]["samples.parquet"] = "there"


def _other_count(manifest: dict[str, Any]) -> None:
    manifest["n_samples"] = 13


@pytest.mark.parametrize("change", [_without_files, _outside, _unlisted, _listed_wrongly, _other_count])
def test_changed_manifest_is_refused(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"damaged.*prepare again"):
        read_clusters(folder)


def _named_too_long(manifest: dict[str, Any]) -> None:
    manifest["files"]["a" * 5000] = {"bytes": 0, "sha256": ""}


def _no_text(manifest: dict[str, Any]) -> None:
    manifest["files"]["\ud800"] = {"bytes": 0, "sha256": ""}


@pytest.mark.parametrize("change", [_named_too_long, _no_text])
def test_names_that_no_file_can_have(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"damaged.*prepare again"):
        read_clusters(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", " " * 2**21])
def test_invalid_manifest(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: .*prepare again"):
        read_clusters(folder)


NO_TEXTS = pa.Array.from_buffers(pa.string(), N, pa.array([b"\xff"] * N).buffers())
"""Strings that are not UTF-8, which parquet does not check."""


def _update_digest(folder: Path, name: str) -> None:
    """Enter a changed file in the manifest, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (_samples(N).append_column("key", pa.array(["a"] * N)), "2 columns key"),
        (_samples(N).set_column(1, "text", pa.array([["a"]] * N)), "has type list"),
        (_samples(N).set_column(1, "text", pa.nulls(N, pa.string())), "text has missing values"),
        (_samples(2 * N), "24 rows for 12 samples"),
        (_samples(N).set_column(1, "text", NO_TEXTS), "UTF8"),
        (_samples(N).append_column("bytes", pa.array(["9"] * N)), "bytes has type string, not int64"),
        (_samples(N).append_column("bytes", pa.nulls(N, pa.int64())), "bytes is missing"),
    ],
)
def test_invalid_table_with_a_valid_digest(folder: Path, table: pa.Table, fault: str) -> None:
    pq.write_table(table, folder / "samples.parquet")
    _update_digest(folder, "samples.parquet")
    with pytest.raises(ArtifactError, match=rf"damaged: .*{fault}.*prepare again"):
        read_clusters(folder)
    if "missing" not in fault and fault != "UTF8":  # open_clusters does not check the values
        with pytest.raises(ArtifactError, match=r"damaged.*prepare again"):
            open_clusters(folder)


@pytest.mark.parametrize(
    "centroids", [torch.zeros(10**9, 0), torch.zeros(0, 4), torch.ones(N + 1, 4), torch.ones(3, 4).double()]
)
def test_degenerate_clusters_take_no_memory(folder: Path, centroids: Tensor) -> None:
    """A file of a few bytes can claim a billion clusters in 0 dimensions."""
    stored = read_clusters(folder).clusters
    tensors = {"image_labels": stored.image.labels, "image_centroids": centroids}
    tensors |= {"text_labels": stored.text.labels, "text_centroids": stored.text.centroids}
    write_tensors({name: tensor.clone() for name, tensor in tensors.items()}, folder / "clusters.safetensors")
    _update_digest(folder, "clusters.safetensors")
    with pytest.raises(ArtifactError, match=r"damaged.*(12 samples cannot have|image_centroids is float64)"):
        read_clusters(folder)


def test_damaged_table_of_broken_samples(folder: Path) -> None:
    (folder / "broken.parquet").write_bytes(b"no table")
    _update_digest(folder, "broken.parquet")
    with pytest.raises(ArtifactError, match=r"broken\.parquet: .*prepare again"):
        _ = read_clusters(folder).broken
    pq.write_table(pa.table({"key": ["a"], "reason": ["why"], "shard": ["a.tar"]}), folder / "broken.parquet")
    _update_digest(folder, "broken.parquet")
    assert read_clusters(folder).broken.to_pylist() == [{"key": "a", "reason": "why", "shard": "a.tar"}]


def test_other_format_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ArtifactError, match="has format 99, but this version reads format 1"):
        read_clusters(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="clip-negatives prepare"):
        read_clusters(tmp_path / "nothing")


def _replace(**parts: Any) -> Clusters:
    return dataclasses.replace(_clusters(), **parts)


@pytest.mark.parametrize(
    ("clusters", "samples", "fault"),
    [
        (_clusters(), _samples(10), "10 rows for 12 samples"),
        (_clusters(), _samples().drop_columns(["text"]), "lacks the column"),
        (_clusters(), pa.table({"key": ["same"] * N, "text": ["text"] * N}), "a key repeats"),
        (_replace(image=Clustering(torch.arange(N) % 3 + 1, torch.ones(3, 4))), _samples(), "outside 0"),
        (
            _replace(text=Clustering(torch.zeros(N, dtype=torch.int64), torch.ones(4, 5))),
            _samples(),
            "text cluster 1 is empty",
        ),
        (_replace(image=Clustering(torch.arange(N) % 3, torch.full((3, 4), torch.nan))), _samples(), "not finite"),
        (_replace(image=Clustering((torch.arange(N) % 3).int(), torch.ones(3, 4))), _samples(), "shape or dtype"),
        (_replace(text=Clustering(torch.arange(6) % 3, torch.ones(3, 5))), _samples(), "shape or dtype"),
        (_replace(image_features=torch.ones(N, 7)), _samples(), "image features"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(tmp_path: Path, clusters: Clusters, samples: pa.Table, fault: str) -> None:
    with pytest.raises(ArtifactError, match=fault):
        write_clusters(tmp_path / "clusters", clusters, samples, {})
    assert not list(tmp_path.iterdir())


def test_integer_ids_of_a_chunked_column() -> None:
    """Equal values get equal ids, also in different chunks."""
    pieces = [["shoe", "", "hat"], [], ["hat", "", None, "shoe", "sock"]]
    column = pa.chunked_array([pa.array(piece, pa.string()) for piece in pieces])
    ids, whole = integer_ids(column).tolist(), integer_ids([value or "" for piece in pieces for value in piece]).tolist()
    assert ids == whole
    assert ids[0] == ids[6] != ids[2] == ids[3]
    assert len(set(ids)) == 6
    assert integer_ids(["shoe", "", "hat", "", "shoe"]).tolist() == [0, 5, 2, 6, 0]


def test_labels_do_not_change_when_their_file_does(folder: Path) -> None:
    """A folder that is written over in place must not change a training that read it before."""
    read = read_clusters(folder).clusters
    before = read.image.labels.clone(), read.text.labels.clone(), read.image.centroids.clone()
    with (folder / "clusters.safetensors").open("r+b") as stream:
        size = stream.seek(0, 2)
        stream.seek(size // 2)
        stream.write(bytes(size - size // 2))
    for now, then in zip((read.image.labels, read.text.labels, read.image.centroids), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", ["manifest.json", "clusters.safetensors", "samples.parquet", "features.safetensors"])
def test_pipe_in_place_of_a_file_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ArtifactError, match=f"damaged: {name}"):
        read_clusters(folder)


@pytest.mark.parametrize("step", ["read_manifest", "read_tensors", "open_table", "read_table"])
def test_folder_that_is_replaced_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The files of two folders are never mixed, and the new folder is not called damaged."""
    owners: dict[str, Any] = {"read_manifest": FolderFormat, "read_table": clusters_folder}
    owner = owners.get(step, clusters_parts)
    original, seeds = getattr(owner, step), iter(range(4, 6))

    def replacing(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if (seed := next(seeds, None)) is not None:
            write_clusters(folder, _clusters(), _samples().append_column("shard", pa.array(["0.tar"] * N)), {"seed": seed})
        return result

    monkeypatch.setattr(owner, step, replacing)
    stored = read_clusters(folder)
    assert stored.manifest["seed"] == 5
    assert "shard" in stored.samples.column_names


def test_folder_that_is_missing_for_a_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = folder.with_name("away")
    folder.rename(away)
    monkeypatch.setattr(manifest.time, "sleep", lambda _: away.rename(folder))
    assert read_clusters(folder).manifest["seed"] == 3


def test_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a clusters folder"):
        read_clusters(tmp_path / ("x" * 300))


def test_a_folder_that_may_not_be_read_is_not_to_be_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(manifest, "read_json", refuse)
    words = rf"The clusters folder {folder} cannot be read: manifest.json: Permission denied. Change its permissions.$"
    with pytest.raises(ArtifactError, match=words):
        read_clusters(folder)
