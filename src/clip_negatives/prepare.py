"""From data to a clusters folder: encode, cluster, write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import platformdirs
import pyarrow as pa

from clip_negatives import registry
from clip_negatives.artifacts import FORMAT, MANIFEST, ClustersFolder, read_clusters, write_clusters
from clip_negatives.dataset import PairSource
from clip_negatives.encoders import image_encoder as image_encoder_of
from clip_negatives.encoders import text_encoder as text_encoder_of
from clip_negatives.errors import ArtifactError
from clip_negatives.features import encode
from clip_negatives.refresh import cluster_features

CACHE_VARIABLE = "CLIP_NEGATIVES_CACHE"
"""Environment variable: folder of cached clusters folders."""


def prepare(
    source: PairSource,
    output: str | Path,
    *,
    image_encoder: str = "pixels",
    text_encoder: str = "tfidf",
    clusterer: str = "kmeans",
    text_clusterer: str | None = None,
    seed: int = 0,
    keep_features: bool = True,
    progress: bool = True,
) -> ClustersFolder:
    """Encode and cluster the pairs of `source` and write a clusters folder.

    An interrupted call leaves what it encoded beside `output`, and the next one with the same data and encoders goes on
    there; `output` itself appears when it is whole.

    Args:
        source: the data.
        output: folder to make; an older clusters folder there is replaced.
        image_encoder: see `clip_negatives.encoders`.
        text_encoder: the same.
        clusterer: ``name`` or ``name:key=value,...``, for images and texts.
        text_clusterer: another one for the texts.
        seed: seed of the clustering.
        keep_features: write the features too; the weighting by similarity of samples needs them.
        progress: show progress bars on stderr.

    Raises:
        PluginError: a name or option is unknown.
        DataError: the data or the weights of an encoder cannot be read.
        InputError: the clusterer refuses the features.
        ArtifactError: the folder cannot be written.
    """
    output = Path(output)
    _refuse_foreign(output)
    for spec in filter(None, (clusterer, text_clusterer)):
        registry.create("clusterer", spec)  # a wrong name or value ends it here, before hours of encoding
    images, texts = image_encoder_of(image_encoder), text_encoder_of(text_encoder)
    work = output.with_name(f".{output.name}.features")
    image_features, text_features = encode(source, images, texts, work, progress=progress)
    clusters = cluster_features(
        image_features, text_features, clusterer=clusterer, text_clusterer=text_clusterer, seed=seed
    )
    manifest = {
        "image_encoder": images.name,
        "text_encoder": texts.name,
        "clusterer": clusterer,
        "text_clusterer": text_clusterer or clusterer,
        "seed": seed,
        "data": source.fingerprint(),
    }
    if not keep_features:
        clusters = type(clusters)(clusters.image, clusters.text, clusters.image_similarity, clusters.text_similarity)
    write_clusters(output, clusters, _samples(source), manifest)
    shutil.rmtree(work)
    return read_clusters(output)


def prepare_cached(source: PairSource, **options: Any) -> ClustersFolder:
    """Return the clusters folder of these data and options from the cache, made if it is not there or is damaged.

    Args:
        source: the data.
        **options: those of `prepare` but `output`.

    Raises:
        ClipNegativesError: as `prepare`.
    """
    folder = cache_folder(source, **options)
    if (folder / MANIFEST).exists():
        try:
            return read_clusters(folder)
        except ArtifactError:
            shutil.rmtree(folder)  # damaged: it is only a cache
    return prepare(source, folder, **options)


def cache_folder(source: PairSource, *, progress: bool = True, **options: Any) -> Path:
    """Return where the cache keeps the clusters of these data and options.

    It lies in the environment variable ``CLIP_NEGATIVES_CACHE`` or the user's cache folder.
    """
    root = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("clip-negatives")
    key = json.dumps({"format": FORMAT, "data": source.fingerprint(), **options}, sort_keys=True)
    return Path(root) / f"clusters-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _samples(source: PairSource) -> pa.Table:
    columns = {"key": list(source.keys), "text": list(source.texts)}
    if source.image_paths is not None:
        columns["image"] = list(source.image_paths)
    if source.groups is not None:
        columns["group"] = list(source.groups)
    return pa.table(columns)


def _refuse_foreign(output: Path) -> None:
    """Refuse before encoding what writing would refuse after it."""
    ours = output.is_dir() and ((output / MANIFEST).exists() or not any(output.iterdir()))
    if output.exists() and not ours:
        raise ArtifactError(f"Expected {output} to be absent, empty or a clusters folder, got something else. Name another.")
