"""Make a clusters folder from data: encode, cluster, write."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import platformdirs

from clip_negatives.clustering.fit import check_clusterers, cluster_together
from clip_negatives.dataset import ImageTextPairs
from clip_negatives.dataset.missing import MissingLimit
from clip_negatives.distributed.processes import ALONE, Processes
from clip_negatives.encoders import image_encoder as image_encoder_of
from clip_negatives.encoders import text_encoder as text_encoder_of
from clip_negatives.errors import ArtifactError
from clip_negatives.features import encode
from clip_negatives.features.given import GivenFeatures, manifest_entry
from clip_negatives.features.losses import check_share
from clip_negatives.host.registry import Kind
from clip_negatives.pipelines.open_data import open_data
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.printing import log
from clip_negatives.progress import shown, stage
from clip_negatives.storage.clusters_folder import ClustersFolder, read_clusters, write_clusters_from_files
from clip_negatives.storage.folder_kind import FORMAT
from clip_negatives.storage.limits import MAX_LOST
from clip_negatives.storage.locks import sole_user
from clip_negatives.storage.manifest import CLUSTERS_FOLDER, MANIFEST, MISSING_SHARDS
from clip_negatives.storage.ownership import claim_work, remove_work
from clip_negatives.storage.paths import obstacle
from clip_negatives.storage.provenance import plugins_section, resolved
from clip_negatives.storage.safe_reading import read_json

GIVEN = "given"  # in a manifest: name of the encoder of precomputed features
CACHE_VARIABLE = "CLIP_NEGATIVES_CACHE"  # environment variable: folder of cached clusters folders

# How to accept a loss of {} percent when the clusters are prepared for the cache.
ACCEPTED = "or run clip-negatives prepare with --max-lost {}%, and use its folder as the clusters"
WITHOUT_MISSING = "Or run clip-negatives prepare with --max-missing-shards {}, and use its folder as the clusters."


def prepare(
    data: ImageTextPairs | str | Path, output: str | Path, recipe: Recipe | None = None, **options: Any
) -> ClustersFolder:
    """Encode and cluster image-text pairs, write a clusters folder, and read it.

    Arguments and errors are those of `prepare_folder`, which does not read the folder.
    """
    prepare_folder(data, output, recipe, **options)
    return read_clusters(output)


def prepare_folder(
    data: ImageTextPairs | str | Path,
    output: str | Path,
    recipe: Recipe | None = None,
    *,
    features: str | Path | None = None,
    keep_features: bool | None = None,
    progress: bool = True,
    processes: Processes = ALONE,
    max_lost: float = MAX_LOST,
    max_missing_shards: int | str = 0,
) -> dict[str, Any]:
    """Encode and cluster image-text pairs, write a clusters folder, and return its manifest.

    An interrupted call leaves the encoded parts beside `output`. The next call with the same encoders continues there, on any
    number of processes. `output` itself appears only when it is complete. A second run on the same folder waits.

    The folder is the same for any number of processes, except for the date in its manifest. In addition to the memory of
    `encode` and of the clusterer, rank 0 needs 16 bytes per pair for the labels.

    Args:
        data: the pairs, a ``datasets.Dataset``, or a path or URL, see `Recipe.open`.
        output: folder to write; an older clusters folder there is replaced.
        recipe: encoders, clusterers, seed and columns; None is `Recipe()`.
        features: precomputed features of the rows of a table, see `clip_negatives.dataset.given.feature_places`. They take the
            place of an encoder. With features of the images, no image is opened.
        keep_features: store the features too, for weightings that compare samples instead of clusters. None stores them
            only without `features`.
        progress: show progress on stderr, see `clip_negatives.progress`.
        processes: the processes that share the work, see `clip_negatives.distributed.torchrun.joined`.
        max_lost: largest share of samples, 0 .. 1, that may be in the lost part of torn tars or be unreadable.
        max_missing_shards: largest number of tars, or percentage of the tars such as ``"1%"``, that may not exist or be
            unreachable. They are left out, and listed in the manifest; the next call reads them.

    Raises:
        PluginError: a name or option is unknown.
        DataError: the data or the weights of an encoder cannot be read, or more than `max_lost` of the samples are lost.
        MissingShardError: more than `max_missing_shards` tars are missing. It is a DataError.
        InputError: a value is out of its range, or the clusterer cannot cluster the features.
        ArtifactError: the folder cannot be written.
        ProcessError: a process was lost.
    """
    recipe = recipe or Recipe()
    missing = processes.together(lambda: MissingLimit(max_missing_shards))
    folder = processes.together(lambda: CLUSTERS_FOLDER.check(output))
    is_shown = progress and processes.rank == 0
    with shown(is_shown), stage("Reading the data"):
        source, given = processes.together(lambda: open_data(data, recipe, features))
    processes.together(lambda: recipe.check(source.n_pairs))
    processes.together(lambda: check_share(max_lost))
    keep_features = features is None if keep_features is None else keep_features
    options: dict[str, Any] = {"keep_features": keep_features, "max_lost": max_lost, "missing": missing}
    with ExitStack() as stack:
        stack.enter_context(shown(is_shown))
        processes.first(lambda: stack.enter_context(sole_user(folder)))
        processes.first(lambda: CLUSTERS_FOLDER.tidy(folder))
        older = processes.first(lambda: _data_of(folder))
        manifest = _encode_and_cluster(source, folder, recipe, given, processes=processes, **options)
        if older not in (None, manifest["data"]):
            processes.first(lambda: log(f"{folder} had clusters of other data or other columns. They were replaced."))
        return manifest


def prepare_cached(source: ImageTextPairs, recipe: Recipe | None = None, *, progress: bool = True) -> ClustersFolder:
    """Return the clusters folder of these data and this recipe from the cache; prepare it if it is missing or damaged.

    Features are kept. Errors are those of `prepare_folder`.
    """
    recipe = recipe or Recipe()
    with shown(progress), stage("Reading the data"):
        folder = cache_folder(source, recipe)
    work = _work_folder(folder)
    if (cached := _cached(folder)) is not None:
        if any(folder.parent.glob(f".{folder.name}.*")):  # of a killed process, or of one that is about to end
            with suppress(ArtifactError), sole_user(folder, wait=False):
                CLUSTERS_FOLDER.tidy(folder)
                remove_work(work)
        return cached
    if (parent := obstacle(folder)) is not None:
        fault = f"The cache {folder.parent} cannot be written: {parent} is not a writable folder."
        raise ArtifactError(f"{fault} Set {CACHE_VARIABLE} to another folder.")
    recipe.check(source.n_pairs)
    with sole_user(folder), shown(progress):
        CLUSTERS_FOLDER.tidy(folder)
        if (cached := _cached(folder)) is not None:  # another process prepared it meanwhile
            remove_work(work)
            return cached
        options: dict[str, Any] = {"processes": ALONE, "max_lost": MAX_LOST, "missing": MissingLimit(0, WITHOUT_MISSING)}
        options["cached"] = True
        _encode_and_cluster(source, folder, recipe, {}, keep_features=True, **options)
    return read_clusters(folder)


def cache_folder(source: ImageTextPairs, recipe: Recipe | None = None) -> Path:
    """Return the cache folder of a data set and a recipe.

    Its name is a digest of the data, the encoders with the content of their weights, the clusterers with options, version and
    source, and the seed. The environment variable ``CLIP_NEGATIVES_CACHE`` names the folder of the cache; without it, the cache
    is in the user's cache folder.

    Raises:
        PluginError: a name or option is unknown.
    """
    recipe = recipe or Recipe()
    root = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("clip-negatives")
    dtype = [] if recipe.feature_dtype == Recipe.feature_dtype else [recipe.feature_dtype]
    parts = FORMAT, source.fingerprint(), *recipe.encoders, *_clusterers(recipe), *dtype
    return Path(root).absolute() / f"clusters-{_short_digest(parts)}"


def _encode_and_cluster(
    source: ImageTextPairs,
    output: Path,
    recipe: Recipe,
    given: Mapping[str, GivenFeatures],
    *,
    keep_features: bool,
    processes: Processes,
    max_lost: float,
    missing: MissingLimit,
    cached: bool = False,
) -> dict[str, Any]:
    """Encode, cluster and write in a work folder that no other run uses; return the manifest."""
    work = _work_folder(output)
    # Before the work folder is made: weights may be missing.
    images, texts = processes.together(
        lambda: (
            given.get("image") or image_encoder_of(recipe.image_encoder),
            given.get("text") or text_encoder_of(recipe.text_encoder),
        )
    )
    processes.first(lambda: claim_work(work))
    options: dict[str, Any] = {"max_lost": max_lost, "repair": ACCEPTED if cached else ""}
    options |= {"copy": keep_features, "processes": processes, "missing": missing}
    encoded = encode(source, images, texts, work, dtype=recipe.feature_dtype, **options)
    processes.together(lambda: check_clusterers(encoded.n_samples, **recipe.clusterers))
    clusterings = cluster_together(
        encoded.image,
        encoded.text,
        **recipe.clusterers,
        seed=recipe.seed,
        processes=processes,
    )
    manifest = {
        **dataclasses.asdict(recipe),
        **recipe.clusterers,
        "image_encoder": GIVEN if "image" in given else images.name,
        "text_encoder": GIVEN if "text" in given else texts.name,
        "data": encoded.fingerprint,
        "n_broken": encoded.n_broken,
        "n_torn": len(encoded.losses.torn),
    }
    if encoded.losses.missing:
        manifest[MISSING_SHARDS] = [shard for shard, _ in encoded.losses.missing]
    del manifest["columns"]  # describes the data, not the clustering
    if given:
        manifest["features"] = processes.first(lambda: manifest_entry(given))
        manifest["feature_dtype"] = str(encoded.image.dtype).removeprefix("torch.")
    files = [*encoded.files, *([encoded.features_file] if keep_features else [])]
    with stage("Writing the clusters folder"):
        written = processes.first(lambda: write_clusters_from_files(output, clusterings, files, manifest, cached=cached))
    processes.together(encoded.unmap)
    # The next call reads torn and missing tars again, and keeps the other parts.
    if cached or not (encoded.losses.torn or encoded.losses.missing):
        processes.first(lambda: remove_work(work))
    left_out = [f"{fault} It is left out." for _, fault in encoded.losses.missing]
    for warning in (*left_out, *encoded.warnings) if processes.rank == 0 else ():
        log(warning)
    return written


def _data_of(folder: Path) -> str | None:
    """Return the fingerprint of the data of a clusters folder; None without a folder, or if its manifest is damaged."""
    with suppress(OSError, ValueError):
        return str(read_json(folder / MANIFEST).get("data"))
    return None


def _cached(folder: Path) -> ClustersFolder | None:
    with suppress(ArtifactError):  # missing or damaged
        return read_clusters(folder)
    return None


def _clusterers(recipe: Recipe) -> tuple[Any, ...]:
    """Return what determines a clustering of given features: the clusterers with options, version and source, and the seed."""
    specs: list[tuple[Kind, str]] = [("clusterer", spec) for spec in recipe.clusterers.values()]
    return *itertools.starmap(resolved, specs), plugins_section(specs), recipe.seed


def _short_digest(parts: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _work_folder(output: Path) -> Path:
    """Return the folder of encoded parts: beside the output, so that both are on one disk."""
    return output.with_name(f".{output.name}.features")
