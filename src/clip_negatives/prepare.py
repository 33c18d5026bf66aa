"""From data to a clusters folder: encode, cluster, write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from clip_negatives import registry
from clip_negatives.artifacts import MANIFEST, ClustersFolder, read_clusters, write_clusters_of
from clip_negatives.atomic import refuse_foreign, remove_folder, sole_user, tidy_folder
from clip_negatives.dataset import PairSource
from clip_negatives.encoders import encoder_name
from clip_negatives.encoders import image_encoder as image_encoder_of
from clip_negatives.encoders import text_encoder as text_encoder_of
from clip_negatives.errors import ArtifactError
from clip_negatives.features import encode
from clip_negatives.manifests import FORMAT
from clip_negatives.processes import ALONE, Processes
from clip_negatives.refresh import check_clusterers, cluster_together
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
    feature_dtype: str = "float32",
    progress: bool = True,
    processes: Processes = ALONE,
) -> ClustersFolder:
    """Encode and cluster the pairs of `source`, write a clusters folder, and read it.

    See `prepare_folder`, which does all of it but the reading, and takes the same arguments.

    Raises:
        ClipNegativesError: as `prepare_folder`.
    """
    options: dict[str, Any] = {
        "image_encoder": image_encoder,
        "text_encoder": text_encoder,
        "clusterer": clusterer,
        "text_clusterer": text_clusterer,
        "seed": seed,
    }
    kept: dict[str, Any] = {"keep_features": keep_features, "feature_dtype": feature_dtype}
    prepare_folder(source, output, **options, **kept, progress=progress, processes=processes)
    return read_clusters(output)


def prepare_folder(
    source: PairSource,
    output: str | Path,
    *,
    image_encoder: str = "pixels",
    text_encoder: str = "tfidf",
    clusterer: str = "kmeans",
    text_clusterer: str | None = None,
    seed: int = 0,
    keep_features: bool = True,
    feature_dtype: str = "float32",
    progress: bool = True,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Encode and cluster the pairs of `source`, write a clusters folder, and return its manifest.

    An interrupted call leaves what it encoded beside `output`, and the next one with the same encoders goes on there, on any
    number of processes; `output` itself appears when it is whole. Another run that prepares the same folder waits.

    The folder is the same for any number of processes, but for the date in its manifest. Beside what `encode` holds in
    memory and what the clusterer does, rank 0 has the labels there, 16 bytes a pair.

    Args:
        source: the data.
        output: folder to make; an older clusters folder there is replaced.
        image_encoder: see `clip_negatives.encoders`.
        text_encoder: the same.
        clusterer: ``name`` or ``name:key=value,...``, for images and texts.
        text_clusterer: another one for the texts.
        seed: seed of the clustering.
        keep_features: write the features too; weightings by the similarity of samples, not of clusters, need them.
        feature_dtype: "float32" or "float16", of the features that are clustered and kept.
        progress: show progress bars on stderr.
        processes: those that share the work, see `clip_negatives.processes.joined`; each makes this call.

    Raises:
        PluginError: a name or option is unknown.
        DataError: the data or the weights of an encoder cannot be read.
        InputError: the clusterer refuses the features.
        ArtifactError: the folder cannot be written.
        ProcessError: a process was lost.
    """
    output = Path(output).absolute()
    recipe = _Recipe(image_encoder, text_encoder, clusterer, text_clusterer or clusterer, seed, feature_dtype)

    def check() -> None:
        # What can fail without the data fails before hours of encoding.
        refuse_foreign(output, known_by=MANIFEST)
        recipe.check(source.n_pairs)

    processes.together(check)
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(sole_user(_work_folder(output)))
            tidy_folder(output)

        processes.first(begin)
        return _make(source, output, recipe, keep_features=keep_features, progress=progress, processes=processes)


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
    work = _work_folder(folder)
    if (cached := _cached(folder)) is not None:
        if any(folder.parent.glob(f".{folder.name}.*")):  # of a process that was killed, or is about to end
            with suppress(ArtifactError), sole_user(work):  # what stays is no error
                tidy_folder(folder)
                _discard(work, folder)
        return cached
    recipe.check(source.n_pairs)
    with sole_user(work):
        tidy_folder(folder)
        if (cached := _cached(folder)) is not None:  # made by the process that was waited for
            _discard(work, folder)
            return cached
        _make(source, folder, recipe, progress=progress)
    return read_clusters(folder)


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
    feature_dtype: str = "float32"

    def check(self, n_samples: int | None) -> None:
        """Refuse what cannot be clustered, or could not be encoded: names, options and numbers."""
        epoch_generator(self.seed, 0)
        check_clusterers(n_samples, self.clusterer, self.text_clusterer)
        encoder_name("image", self.image_encoder), encoder_name("text", self.text_encoder)


def _make(
    source: PairSource,
    output: Path,
    recipe: _Recipe,
    *,
    keep_features: bool = True,
    progress: bool = True,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Do what `prepare_folder` does, in a work folder that no other run uses."""
    images, texts = processes.together(lambda: (image_encoder_of(recipe.image_encoder), text_encoder_of(recipe.text_encoder)))
    work = _work_folder(output)
    encoded = encode(source, images, texts, work, dtype=recipe.feature_dtype, progress=progress, processes=processes)
    specs: dict[str, Any] = {"clusterer": recipe.clusterer, "text_clusterer": recipe.text_clusterer, "seed": recipe.seed}
    processes.together(lambda: check_clusterers(encoded.n_samples, recipe.clusterer, recipe.text_clusterer))
    checkpoint = encoded.aside / hashlib.sha256(json.dumps(specs).encode()).hexdigest()[:16]
    clusterings = cluster_together(encoded.image, encoded.text, **specs, checkpoint=checkpoint, processes=processes)
    manifest = {
        **dataclasses.asdict(recipe),
        "image_encoder": images.name,
        "text_encoder": texts.name,
        "data": encoded.fingerprint,
        "n_broken": encoded.n_broken,
    }

    def write() -> dict[str, Any]:
        files = [*encoded.files, *([encoded.features_file] if keep_features else [])]
        image, text = clusterings
        return write_clusters_of(output, image, text, files, manifest)

    written = processes.first(write)
    processes.together(encoded.unmap)
    processes.first(lambda: _discard(work, output))
    return written


def _discard(work: Path, output: Path) -> None:
    """Remove the work folder of an output that is there: what stays of it is no error, and the next run removes it."""
    with suppress(OSError):
        remove_folder(work, output)


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
