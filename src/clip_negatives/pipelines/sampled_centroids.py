"""Centroids of encoded parts, clustered from a random sample; and the folder that holds them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.clustering.fit import check_clusterers, cluster_together
from clip_negatives.dataset.missing import MissingLimit
from clip_negatives.distributed.processes import ALONE
from clip_negatives.errors import ArtifactError, DataError, InputError
from clip_negatives.features.losses import Losses, PartReport, check_share
from clip_negatives.host import registry
from clip_negatives.interfaces import Clustering
from clip_negatives.pipelines.encoded_parts import parts_folder
from clip_negatives.pipelines.part_rows import sampled_features
from clip_negatives.pipelines.recipe import POINTS_PER_CLUSTER
from clip_negatives.progress import shown
from clip_negatives.storage.consistency import MODALITIES
from clip_negatives.storage.limits import MAX_LOST
from clip_negatives.storage.manifest import CENTROIDS_FOLDER
from clip_negatives.storage.provenance import plugins_section, resolved
from clip_negatives.storage.safe_reading import parse_json
from clip_negatives.storage.stored_folder import local_output
from clip_negatives.storage.task_folder import Record, TaskFolder

REPAIR = "and run clip-negatives encode again, or accept the loss with {}"


def write_centroids(
    parts: str | Path,
    output: str | Path,
    *,
    clusterer: str,
    text_clusterer: str | None = None,
    points_per_cluster: int = POINTS_PER_CLUSTER,
    seed: int = 0,
    max_lost: float = MAX_LOST,
    max_missing_shards: int | str = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Cluster a random sample of encoded parts, write the centroids atomically, and return their manifest.

    Each part gives its share of the sample. The sample depends on the seed and the parts alone. It is memory-mapped from a
    temporary file beside `output`; if `output` is a URL, the file is in the temporary folder of the system.

    Args:
        parts: folder of `clip_negatives.pipelines.encoded_parts.encode_parts`, a path or a URL.
        output: folder for ``image.npy``, ``text.npy`` (row k is the centroid of cluster k) and ``centroids.json``, a path or a
            URL.
        clusterer: ``name:n_clusters=...`` of any clusterer with this option.
        text_clusterer: clusterer of the texts; None uses `clusterer`.
        points_per_cluster: number of samples that are drawn for each of the clusters.
        seed: seed of the sample and of the clusterer.
        max_lost: largest share of samples, 0 .. 1, that may be lost in all parts.
        max_missing_shards: largest number or percentage of tars that may be missing.
        progress: show progress on stderr.

    Raises:
        ArtifactError: parts are not complete or damaged, or `output` cannot be written.
        DataError: more samples or tars are lost than allowed, or no sample is left.
        InputError: a value is out of its range, or the clusterer cannot cluster the sample, or limits the size of clusters.
        PluginError: a clusterer or an option is unknown.
    """
    specs = {"clusterer": clusterer, "text_clusterer": text_clusterer or clusterer}
    limit = MissingLimit(max_missing_shards)
    check_share(max_lost)
    wanted = _wanted_points(specs, points_per_cluster)
    with local_output(CENTROIDS_FOLDER, output) as target:
        folder = parts_folder(parts).opened()
        records = folder.records()
        _check_losses(records, limit, max_lost)
        counts = [int(record["count"]) for record in records]
        size = min(sum(counts), wanted)
        check_clusterers(size, **specs)
        target.parent.mkdir(parents=True, exist_ok=True)
        with shown(progress), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.sample.") as name:
            scratch = Path(name)
            image, text = (sampled_features(folder, side, counts, size, seed, scratch) for side in MODALITIES)
            clusterings = cluster_together(image, text, **specs, seed=seed, processes=ALONE)
        about = _about(specs, seed, folder.plan, sum(counts), size)
        return _write(target, dict(zip(MODALITIES, clusterings, strict=True)), about)


@dataclass(frozen=True, slots=True)
class Centroids:
    """Centroids of images and texts, float32, shape (K, D), with their digests, and the digest of the plan of their parts."""

    rows: Mapping[str, Tensor]
    digests: Mapping[str, str]
    plan: str


def read_centroids(location: str | Path) -> Centroids:
    """Read a folder of centroids from a path or URL; ArtifactError if it is missing or damaged."""
    folder = TaskFolder.at(location, CENTROIDS_FOLDER.name, "clip-negatives centroids")
    if (content := folder.read(CENTROIDS_FOLDER.manifest)) is None:
        fault = f"{location} is not a centroids folder: no {CENTROIDS_FOLDER.manifest}"
        raise ArtifactError(f"{fault}. Write one with clip-negatives centroids.")
    try:
        manifest = parse_json(content)
        digests = {side: str(manifest["files"][f"{side}.npy"]["sha256"]) for side in MODALITIES}
        stored = {side: folder.read(f"{side}.npy") or b"" for side in MODALITIES}
        if any(sha256(stored[side]).hexdigest() != digests[side] for side in MODALITIES):
            raise ValueError("a file is missing, or changed after it was written")
        arrays = {side: np.load(io.BytesIO(stored[side]), allow_pickle=False) for side in MODALITIES}
        return Centroids({side: torch.from_numpy(array) for side, array in arrays.items()}, digests, str(manifest["plan"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"The centroids folder {location} is damaged: {error}. Write it again.") from error


def _wanted_points(specs: Mapping[str, str], points_per_cluster: int) -> int:
    """Return the size of the sample; InputError if a clusterer does not tell the number of clusters, or has `max_share`."""
    if points_per_cluster < 1:
        raise InputError(f"{argument('points_per_cluster')} must be at least 1, got {points_per_cluster}.")
    numbers = []
    for option, spec in specs.items():
        made = registry.create("clusterer", spec)
        if getattr(made, "max_share", None) is not None:
            fault = (
                f"{argument(option)} {spec} limits clusters by max_share, but assign takes the nearest centroid of each sample"
            )
            raise InputError(f"{fault}. Leave out max_share, or use clip-negatives prepare.")
        number = getattr(made, "n_clusters", None)
        if not isinstance(number, int):
            fault = f"{argument(option)} {spec} does not set the number of clusters, which must not depend on the sample"
            raise InputError(f"{fault}. Write {spec.partition(':')[0]}:n_clusters=NUMBER.")
        numbers.append(number)
    return points_per_cluster * max(numbers)


def _check_losses(records: list[Record], limit: MissingLimit, max_lost: float) -> None:
    reports = [PartReport.of(record) for record in records]
    losses = Losses.of(reports)
    limit.check([fault for _, fault in losses.missing], len(reports))
    losses.check(max_lost, REPAIR.format(f"{argument('max_lost')} {{}}%"))
    if not losses.n_usable:
        raise DataError("The parts have no sample. Check the data.")


def _about(specs: Mapping[str, str], seed: int, plan: str, n_samples: int, n_sampled: int) -> dict[str, Any]:
    """Return what determines the centroids."""
    return {
        **{option: resolved("clusterer", spec) for option, spec in specs.items()},
        "plugins": plugins_section([("clusterer", spec) for spec in specs.values()]),
        "seed": seed,
        "plan": plan,
        "n_samples": n_samples,
        "n_sampled": n_sampled,
    }


def _write(target: Path, clusterings: Mapping[str, Clustering], about: Mapping[str, Any]) -> dict[str, Any]:
    with CENTROIDS_FOLDER.replacing(target) as partial:
        files, sizes = {}, {}
        for side, clustering in clusterings.items():
            file = partial / f"{side}.npy"
            np.save(file, clustering.centroids.float().numpy())
            files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file.read_bytes()).hexdigest()}
            sizes[f"n_{side}_clusters"] = clustering.n_clusters
        return CENTROIDS_FOLDER.write_manifest(partial, {**about, **sizes}, files)
