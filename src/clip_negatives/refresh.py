"""Re-cluster with the model that is being trained: when, and how every rank gets the same clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from clip_negatives import registry
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import similarities


def refresh_due(epoch: int, every: int | None) -> bool:
    """Return whether clusters are made anew before `epoch` (0, 1, ...): each `every` epochs, never before the first.

    Examples:
        >>> [epoch for epoch in range(7) if refresh_due(epoch, 3)]
        [3, 6]
    """
    return bool(every) and epoch > 0 and epoch % int(every or 1) == 0


def cluster_features(
    image_features: Tensor,
    text_features: Tensor,
    *,
    clusterer: str,
    text_clusterer: str | None = None,
    seed: int,
    epoch: int = 0,
) -> Clusters:
    """Cluster the features of both modalities.

    Args:
        image_features: unit norm, float, shape (N, D_image).
        text_features: unit norm, float, shape (N, D_text).
        clusterer: ``name`` or ``name:key=value,...`` of the clusterer.
        text_clusterer: the same for the texts; None takes `clusterer`.
        seed: seed of the run.
        epoch: epoch before which this is done; another epoch clusters from other starts.

    Raises:
        PluginError: no such clusterer, or no such option.
        InputError: the clusterer refuses the features.
    """
    generator = epoch_generator(seed, epoch)
    image: Clustering = registry.create("clusterer", clusterer).fit(image_features, generator=generator)
    text: Clustering = registry.create("clusterer", text_clusterer or clusterer).fit(text_features, generator=generator)
    return Clusters(
        image=image,
        text=text,
        **similarities(image, text),
        image_features=image_features,
        text_features=text_features,
    )


def check_clusterers(n_samples: int, clusterer: str, text_clusterer: str | None = None) -> None:
    """Build the clusterers and let them refuse a number of samples, before anything is encoded for them.

    Raises:
        PluginError: no such clusterer, or no such option.
        InputError: an option is out of its range, or asks for more clusters than there are samples.
    """
    for spec in (clusterer, text_clusterer or clusterer):
        made = registry.create("clusterer", spec)
        if hasattr(made, "check_samples"):
            made.check_samples(n_samples)


def from_first_rank(make: Callable[[], Any]) -> Any:
    """Return what `make` returns on rank 0, on every rank; what it raises there is raised on every rank too.

    Outside of a process group this is ``make()``.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return make()
    message: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            message[0] = make()
        except Exception as error:  # Handed to the other ranks, which wait for it, and raised on all of them below.
            message[1] = error
    dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise message[1]
    return message[0]


def gather_rows(rows: Tensor, n_samples: int) -> Tensor:
    """Put rows that the ranks computed in turn (rank r has r, r + world_size, ...) back into the order of the samples.

    Outside of a process group the rows are returned as they are.

    Args:
        rows: this rank's, shape (ceil or floor of n_samples / world_size, D).
        n_samples: rows in all.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    world_size = dist.get_world_size()
    most = -(-n_samples // world_size)
    padded = rows.new_zeros(most, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:n_samples]
