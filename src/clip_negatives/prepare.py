"""From data to a clusters folder: encode, cluster, write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pyarrow as pa

from clip_negatives import registry
from clip_negatives.artifacts import FORMAT, MANIFEST, ClustersFolder, read_clusters, write_clusters
from clip_negatives.atomic import refuse_foreign, sole_user
from clip_negatives.dataset import PairSource
from clip_negatives.encoders import encoder_name
from clip_negatives.encoders import image_encoder as image_encoder_of
from clip_negatives.encoders import text_encoder as text_encoder_of
from clip_negatives.errors import ArtifactError
from clip_negatives.features import encode
from clip_negatives.refresh import check_clusterers, cluster_features
from clip_negatives.sampling import epoch_generator

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
    there; `output` itself appears when it is whole. A second process that prepares the same folder waits.

    Args:
        source: the data.
        output: folder to make; an older clusters folder there is replaced.
        image_encoder: see `clip_negatives.encoders`.
        text_encoder: the same.
        clusterer: ``name`` or ``name:key=value,...``, for images and texts.
        text_clusterer: another one for the texts.
        seed: seed of the clustering.
        keep_features: write the features too; weightings by the similarity of samples, not of clusters, need them.
        progress: show progress bars on stderr.

    Raises:
        PluginError: a name or option is unknown.
        DataError: the data or the weights of an encoder cannot be read.
        InputError: the clusterer refuses the features.
        ArtifactError: the folder cannot be written.
    """
    output = Path(output).absolute()
    # What can fail without the data fails before hours of encoding.
    refuse_foreign(output, known_by=MANIFEST)
    recipe = _Recipe(image_encoder, text_encoder, clusterer, text_clusterer or clusterer, seed)
    recipe.check(len(source))
    with sole_user(_work_folder(output)):
        return _make(source, output, recipe, keep_features=keep_features, progress=progress)


def prepare_cached(
    source: PairSource,
    *,
    image_encoder: str = "pixels",
    text_encoder: str = "tfidf",
    clusterer: str = "kmeans",
    text_clusterer: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ClustersFolder:
    """Return the clusters folder of these data and options from the cache, made if it is not there or is damaged.

    The arguments are those of `prepare`; features are kept.

    Raises:
        ClipNegativesError: as `prepare`.
    """
    recipe = _Recipe(image_encoder, text_encoder, clusterer, text_clusterer or clusterer, seed)
    folder = _cache_folder(source, recipe)
    if (cached := _cached(folder)) is not None:
        return cached
    recipe.check(len(source))
    work = _work_folder(folder)
    with sole_user(work):
        if (cached := _cached(folder)) is not None:  # made by the process that was waited for
            shutil.rmtree(work)
            return cached
        return _make(source, folder, recipe, keep_features=True, progress=progress)


def cache_folder(
    source: PairSource,
    *,
    image_encoder: str = "pixels",
    text_encoder: str = "tfidf",
    clusterer: str = "kmeans",
    text_clusterer: str | None = None,
    seed: int = 0,
) -> Path:
    """Return where the cache keeps the clusters of these data and options: under a digest of all that decides them.

    That is the data, the encoders with the content of their weights, the clusterers with their options and the version
    of their distribution, and the seed. The cache lies in the environment variable ``CLIP_NEGATIVES_CACHE`` or,
    without one, in the user's cache folder.

    Raises:
        PluginError: a name or option is unknown.
    """
    return _cache_folder(source, _Recipe(image_encoder, text_encoder, clusterer, text_clusterer or clusterer, seed))


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Hold what, beside the data, decides the clusters."""

    image_encoder: str
    text_encoder: str
    clusterer: str
    text_clusterer: str
    seed: int

    def check(self, n_samples: int) -> None:
        """Refuse what cannot be clustered, or could not be encoded: names, options and numbers."""
        epoch_generator(self.seed, 0)
        check_clusterers(n_samples, self.clusterer, self.text_clusterer)
        encoder_name("image", self.image_encoder), encoder_name("text", self.text_encoder)


def _make(source: PairSource, output: Path, recipe: _Recipe, *, keep_features: bool, progress: bool) -> ClustersFolder:
    """Do what `prepare` does, in a work folder that nobody else uses."""
    images, texts = image_encoder_of(recipe.image_encoder), text_encoder_of(recipe.text_encoder)
    work = _work_folder(output)
    image_features, text_features = encode(source, images, texts, work, progress=progress)
    specs: dict[str, Any] = {"clusterer": recipe.clusterer, "text_clusterer": recipe.text_clusterer}
    clusters = cluster_features(image_features, text_features, **specs, seed=recipe.seed)
    if not keep_features:
        clusters = dataclasses.replace(clusters, image_features=None, text_features=None)
    manifest = {
        **dataclasses.asdict(recipe),
        "image_encoder": images.name,
        "text_encoder": texts.name,
        "data": source.fingerprint(),
    }
    write_clusters(output, clusters, _samples(source), manifest)
    shutil.rmtree(work)
    return read_clusters(output)


def _cache_folder(source: PairSource, recipe: _Recipe) -> Path:
    root = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("clip-negatives")
    encoders = encoder_name("image", recipe.image_encoder), encoder_name("text", recipe.text_encoder)
    clusterers = _clusterer_name(recipe.clusterer), _clusterer_name(recipe.text_clusterer)
    parts = FORMAT, source.fingerprint(), *encoders, *clusterers, recipe.seed
    return Path(root).absolute() / f"clusters-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _cached(folder: Path) -> ClustersFolder | None:
    """Return a cached folder, or None where it is not there or is damaged: it is only a cache."""
    try:
        return read_clusters(folder)
    except ArtifactError:
        return None


def _clusterer_name(spec: str) -> str:
    item, options = registry.default_registry().resolve("clusterer", spec)
    given = ",".join(f"{option.name}={options.get(option.name, option.default)}" for option in item.options)
    return f"{item.name}:{given} of {item.distribution} {item.version}"


def _work_folder(output: Path) -> Path:
    """Return where an interrupted call leaves what it encoded: beside the output, so that both are on one disk."""
    return output.with_name(f".{output.name}.features")


def _samples(source: PairSource) -> pa.Table:
    columns = {"key": list(source.keys), "text": list(source.texts)}
    if source.image_paths is not None:
        columns["image"] = list(source.image_paths)
    if source.groups is not None:
        columns["group"] = list(source.groups)
    return pa.table(columns)
