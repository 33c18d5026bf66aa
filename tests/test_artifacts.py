"""A clusters folder is read as it was written, or refused with one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.artifacts import ClustersFolder, codes, map_clusters, read_clusters, write_clusters
from clip_negatives.atomic import digest, write_tensors
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.similarity import centroid_similarity

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
    found, made = read_clusters(folder), _clusters()
    assert isinstance(found, ClustersFolder)
    for name in ("image_similarity", "text_similarity", "image_features", "text_features"):
        assert torch.equal(getattr(found.clusters, name), getattr(made, name))
    for a, b in ((found.clusters.image, made.image), (found.clusters.text, made.text)):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.centroids, b.centroids)
    assert found.samples.equals(_samples())
    assert found.manifest["seed"] == 3
    assert found.manifest["n_samples"] == N
    assert {"package_version", "created", "n_image_clusters", "n_text_clusters"} <= set(found.manifest)


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
    found = read_clusters(tmp_path / "clusters")
    assert found.clusters.image_features is not None
    assert _resident() - before < 60  # of 102 MB
    assert torch.equal(found.clusters.image_features[7], torch.zeros(dim))


def _resident() -> float:
    """Return the memory of this process that is its own, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))) / 1000


@pytest.mark.parametrize("name", ["clusters.safetensors", "samples.parquet", "features.safetensors", "manifest.json"])
def test_truncated_file_is_refused(folder: Path, name: str) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=rf"{name}.*Prepare it again"):
        read_clusters(folder)


@pytest.mark.parametrize("name", ["clusters.safetensors", "samples.parquet"])
def test_changed_file_of_the_same_size_is_refused(folder: Path, name: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} was changed"):
        read_clusters(folder)


@pytest.mark.parametrize("name", ["clusters.safetensors", "samples.parquet", "features.safetensors"])
def test_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
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
    with pytest.raises(ArtifactError, match=r"damaged.*Prepare it again"):
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
    with pytest.raises(ArtifactError, match=r"damaged.*Prepare it again"):
        read_clusters(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", " " * 2**21])
def test_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read.*Prepare it again"):
        read_clusters(folder)


NO_TEXTS = pa.Array.from_buffers(pa.string(), N, pa.array([b"\xff"] * N).buffers())
"""Strings that are no UTF-8, which parquet does not look at."""


def _put(folder: Path, name: str) -> None:
    """Tell the manifest of a changed file, as whoever means harm does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (_samples(N).append_column("key", pa.array(["a"] * N)), "2 columns key"),
        (_samples(N).set_column(1, "text", pa.array([["a"]] * N)), "holds list"),
        (_samples(N).set_column(1, "text", pa.nulls(N, pa.string())), "text is missing"),
        (_samples(2 * N), "24 rows, not 12"),
        (_samples(N).set_column(1, "text", NO_TEXTS), "UTF8"),
    ],
)
def test_table_that_fits_its_digest_and_nothing_else(folder: Path, table: pa.Table, fault: str) -> None:
    pq.write_table(table, folder / "samples.parquet")
    _put(folder, "samples.parquet")
    with pytest.raises(ArtifactError, match=rf"samples\.parquet: .*{fault}.*Prepare it again"):
        read_clusters(folder)
    if "missing" not in fault and fault != "UTF8":  # the texts are not looked at here
        with pytest.raises(ArtifactError, match=r"damaged.*Prepare it again"):
            map_clusters(folder)


@pytest.mark.parametrize(
    "centroids", [torch.zeros(10**9, 0), torch.zeros(0, 4), torch.ones(N + 1, 4), torch.ones(3, 4).double()]
)
def test_clusters_without_size_take_no_memory(folder: Path, centroids: Tensor) -> None:
    """A billion clusters in no dimensions are a file of a few bytes."""
    found = read_clusters(folder).clusters
    tensors = {"image_labels": found.image.labels, "image_centroids": centroids}
    tensors |= {"text_labels": found.text.labels, "text_centroids": found.text.centroids}
    write_tensors({name: tensor.clone() for name, tensor in tensors.items()}, folder / "clusters.safetensors")
    _put(folder, "clusters.safetensors")
    with pytest.raises(ArtifactError, match=r"damaged.*(clusters of 12 samples|image_centroids is float64)"):
        read_clusters(folder)


def test_what_was_left_out_may_be_damaged(folder: Path) -> None:
    (folder / "broken.parquet").write_bytes(b"no table")
    _put(folder, "broken.parquet")
    with pytest.raises(ArtifactError, match=r"broken\.parquet: .*Prepare it again"):
        _ = read_clusters(folder).broken
    pq.write_table(pa.table({"key": ["a"], "reason": ["why"]}), folder / "broken.parquet")
    _put(folder, "broken.parquet")
    assert read_clusters(folder).broken.to_pylist() == [{"key": "a", "reason": "why"}]


def test_other_format_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 1, got 99"):
        read_clusters(folder)


def test_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="clip-negatives prepare"):
        read_clusters(tmp_path / "nothing")


def _replace(**parts: Any) -> Clusters:
    return dataclasses.replace(_clusters(), **parts)


@pytest.mark.parametrize(
    ("clusters", "samples", "fault"),
    [
        (_clusters(), _samples(10), "10 rows for 12 samples"),
        (_clusters(), _samples().drop_columns(["text"]), "lacks a column"),
        (_clusters(), pa.table({"key": ["same"] * N, "text": ["text"] * N}), "a key repeats"),
        (_replace(image=Clustering(torch.arange(N) % 3 + 1, torch.ones(3, 4))), _samples(), "do not exist"),
        (
            _replace(text=Clustering(torch.zeros(N, dtype=torch.int64), torch.ones(4, 5))),
            _samples(),
            "no text is in cluster 1",
        ),
        (_replace(image=Clustering(torch.arange(N) % 3, torch.full((3, 4), torch.nan))), _samples(), "not finite"),
        (_replace(image=Clustering((torch.arange(N) % 3).int(), torch.ones(3, 4))), _samples(), "shape or type"),
        (_replace(text=Clustering(torch.arange(6) % 3, torch.ones(3, 5))), _samples(), "shape or type"),
        (_replace(image_features=torch.ones(N, 7)), _samples(), "image features"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(tmp_path: Path, clusters: Clusters, samples: pa.Table, fault: str) -> None:
    with pytest.raises(ArtifactError, match=fault):
        write_clusters(tmp_path / "clusters", clusters, samples, {})
    assert not list(tmp_path.iterdir())


def test_codes_of_a_column_in_pieces() -> None:
    """Equal values have one number wherever they stand; one array of strings could hold 2 GiB of them at most."""
    pieces = [["shoe", "", "hat"], [], ["hat", "", None, "shoe", "sock"]]
    column = pa.chunked_array([pa.array(piece, pa.string()) for piece in pieces])
    found, whole = codes(column).tolist(), codes([value or "" for piece in pieces for value in piece]).tolist()
    assert found == whole
    assert found[0] == found[6] != found[2] == found[3]
    assert len(set(found)) == 6
