"""Clustering of image and text features: on one process or several, before or during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.clustering.similarity import similarities
from clip_negatives.distributed.processes import Processes
from clip_negatives.errors import InputError
from clip_negatives.host import registry
from clip_negatives.interfaces import Clusterer, Clustering, Clusters
from clip_negatives.plugin_code import no_exit
from clip_negatives.progress import stage
from clip_negatives.sampling import epoch_generator


def refresh_due(epoch: int, every: int | None) -> bool:
    """Return whether to re-cluster before `epoch` (0, 1, ...): every `every` epochs, never before the first."""
    return bool(every and epoch > 0 and epoch % every == 0)


def cluster_features(
    image_features: Tensor,
    text_features: Tensor,
    *,
    clusterer: str,
    text_clusterer: str | None = None,
    seed: int,
    epoch: int = 0,
) -> Clusters:
    """Return the clusters of both modalities; raises `PluginError` or `InputError`.

    Args:
        image_features: unit norm, float, shape (N, D_image).
        text_features: unit norm, float, shape (N, D_text).
        clusterer: ``name`` or ``name:key=value,...``.
        text_clusterer: clusterer of the texts; None uses `clusterer`.
        seed: seed of the run.
        epoch: epoch that trains on the clusters; together with the seed it fixes all random draws.
    """
    generator = epoch_generator(seed, epoch)
    with _errors_name("images", "clusterer", clusterer):
        image: Clustering = registry.create("clusterer", clusterer).fit(image_features, generator=generator)
    with _errors_name("texts", "text_clusterer", text_clusterer or clusterer):
        text: Clustering = registry.create("clusterer", text_clusterer or clusterer).fit(text_features, generator=generator)
    return Clusters(image, text, image_features=image_features, text_features=text_features, **similarities(image, text))


def cluster_together(
    image: Tensor, text: Tensor, *, clusterer: str, text_clusterer: str, seed: int, processes: Processes
) -> list[Clustering]:
    """Return the clusterings of images and texts on rank 0, an empty list elsewhere; every process of a run calls this."""
    generator, clusterings = epoch_generator(seed, 0), list[Clustering]()

    def fit(plugin: Clusterer, features: Tensor) -> None:
        with no_exit():  # within the call on rank 0, so that the other processes learn of it
            clusterings.append(plugin.fit(features, generator=generator))

    sides = ("image", "clusterer", clusterer, image), ("text", "text_clusterer", text_clusterer, text)
    for name, option, spec, features in sides:
        plugin = registry.create("clusterer", spec)
        with _errors_name(f"{name}s", option, spec), stage(f"Clustering {name}s"):
            processes.first(partial(fit, plugin, features))
    return clusterings


@contextmanager
def _errors_name(side: str, option: str, spec: str) -> Iterator[None]:
    """Add the side and its option to an error of a clusterer, which knows neither; a clusterer must not end the program."""
    try:
        with no_exit():
            yield
    except InputError as error:
        raise InputError(f"The {side} cannot be clustered by {spec} ({argument(option)}): {error}") from error


def check_clusterers(n_samples: int | None, clusterer: str, text_clusterer: str) -> None:
    """Create the clusterers and, if the number of samples is known, let them check it before any sample is encoded."""
    for spec in (clusterer, text_clusterer):
        plugin = registry.create("clusterer", spec)
        if n_samples is not None and hasattr(plugin, "check_samples"):
            plugin.check_samples(n_samples)
