"""Read and write a clusters folder: safetensors, parquet and a JSON manifest; written whole or not at all; never pickle.

A folder holds ``manifest.json`` (what it was made from, and the size and SHA-256 of the other files), ``clusters.safetensors``
(labels and centroids), ``samples.parquet`` (key, text, and where known image path and group of each sample) and, if kept,
``features.safetensors``, which is memory-mapped when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clip_negatives.atomic import digest, replaced_folder
from clip_negatives.errors import ArtifactError
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.similarity import centroid_similarity

FORMAT = 1
"""Version of the layout; a folder of another version is refused."""

MANIFEST, CLUSTERS, SAMPLES, FEATURES = "manifest.json", "clusters.safetensors", "samples.parquet", "features.safetensors"


@dataclass(frozen=True, slots=True)
class ClustersFolder:
    """Hold what a clusters folder says.

    Attributes:
        path: the folder.
        clusters: the clusters; features are memory-mapped, or None if they were not kept.
        samples: columns key and text, and where known image and group, all strings; row i is sample i.
        manifest: what the folder was made from.
    """

    path: Path
    clusters: Clusters
    samples: pa.Table
    manifest: Mapping[str, Any]


def write_clusters(path: str | Path, clusters: Clusters, samples: pa.Table, manifest: Mapping[str, Any]) -> None:
    """Write a clusters folder, atomically: it appears under its name when it is whole.

    Args:
        path: folder to make; an older clusters folder there is replaced.
        clusters: labels, centroids and, if they are to be kept, features.
        samples: columns key and text, and where known image and group; one row a sample.
        manifest: more entries for the manifest, as JSON takes them.

    Raises:
        ArtifactError: there is something else under that name, it cannot be written, or the table is of other samples.
    """
    path = Path(path)
    if samples.num_rows != clusters.n_samples or not {"key", "text"} <= set(samples.column_names):
        raise ArtifactError(
            f"Expected a table with columns key and text and {clusters.n_samples} rows, got {samples.column_names} and "
            f"{samples.num_rows} rows."
        )
    with replaced_folder(path, known_by=MANIFEST) as folder:
        _save(_tensors(clusters), folder / CLUSTERS)
        pq.write_table(samples, folder / SAMPLES, compression="zstd")
        if clusters.image_features is not None and clusters.text_features is not None:
            features = {"image": clusters.image_features, "text": clusters.text_features}
            _save(features, folder / FEATURES)
        files = {item.name: {"bytes": item.stat().st_size, "sha256": digest(item)} for item in sorted(folder.iterdir())}
        whole = {
            "format": FORMAT,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "n_samples": clusters.n_samples,
            "n_image_clusters": clusters.image.n_clusters,
            "n_text_clusters": clusters.text.n_clusters,
            **manifest,
            "files": files,
        }
        (folder / MANIFEST).write_text(json.dumps(whole, indent=2) + "\n")


def read_clusters(path: str | Path) -> ClustersFolder:
    """Read a clusters folder and make sure that it is whole and fits together.

    Sums are checked of all but the features, whose size is, as they may be large.

    Raises:
        ArtifactError: it is missing, of another format, damaged, or its parts do not fit.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if file.parent != path or not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise _damaged(path, f"{name} is missing or has another size")
        if name != FEATURES and digest(file) != entry["sha256"]:
            raise _damaged(path, f"{name} was changed")
    try:
        tensors = _load(path / CLUSTERS)
        features = _load(path / FEATURES) if FEATURES in manifest["files"] else {}
        samples = pq.read_table(path / SAMPLES)
        clusters = Clusters(
            image=Clustering(tensors["image_labels"], tensors["image_centroids"]),
            text=Clustering(tensors["text_labels"], tensors["text_centroids"]),
            image_similarity=centroid_similarity(tensors["image_centroids"]),
            text_similarity=centroid_similarity(tensors["text_centroids"]),
            image_features=features.get("image"),
            text_features=features.get("text"),
        )
    except (OSError, KeyError, SafetensorError, pa.ArrowException) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    _check_fit(path, clusters, samples)
    return ClustersFolder(path, clusters, samples, manifest)


def _tensors(clusters: Clusters) -> dict[str, Tensor]:
    return {
        "image_labels": clusters.image.labels,
        "image_centroids": clusters.image.centroids,
        "text_labels": clusters.text.labels,
        "text_centroids": clusters.text.centroids,
    }


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def _load(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version, files = manifest["format"], manifest["files"]
        sound = isinstance(files, dict) and all(
            isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str) for entry in files.values()
        )
    except FileNotFoundError:
        raise ArtifactError(
            f"Expected a clusters folder at {path}, got none (no {MANIFEST}). Make one: clip-negatives prepare."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{MANIFEST} cannot be read: {type(error).__name__}") from error
    if version != FORMAT:
        raise ArtifactError(f"Expected a clusters folder of format {FORMAT}, got {version!r} at {path}. Prepare it again.")
    if not sound or not {CLUSTERS, SAMPLES} <= set(files):
        raise _damaged(path, f"{MANIFEST} does not list the files")
    result: dict[str, Any] = manifest
    return result


def _check_fit(path: Path, clusters: Clusters, samples: pa.Table) -> None:
    """Refuse parts that are each sound but of different data."""
    n = clusters.n_samples
    for clustering, features in ((clusters.image, clusters.image_features), (clusters.text, clusters.text_features)):
        labels = clustering.labels
        if labels.dtype != torch.int64 or labels.shape != (n,) or clustering.centroids.ndim != 2 or n == 0:
            raise _damaged(path, "labels or centroids have the wrong shape")
        if not 0 <= int(labels.min()) <= int(labels.max()) < clustering.n_clusters:
            raise _damaged(path, "a label names no cluster")
        if features is not None and (features.ndim != 2 or len(features) != n):
            raise _damaged(path, "the features are of another number of samples")
    if samples.num_rows != n or not {"key", "text"} <= set(samples.column_names):
        raise _damaged(path, f"{SAMPLES} is of another number of samples or lacks a column")


def _damaged(path: Path, fault: str) -> ArtifactError:
    return ArtifactError(f"Expected a whole clusters folder at {path}, got a damaged one: {fault}. Prepare it again.")
