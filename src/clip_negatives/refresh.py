"""Re-cluster with the model that is being trained: when, and how every rank gets the same clusters."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from clip_negatives import registry
from clip_negatives.interfaces import Clusterer, Clustering, Clusters
from clip_negatives.processes import Processes
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


def cluster_together(
    image_features: Tensor,
    text_features: Tensor,
    *,
    clusterer: str,
    text_clusterer: str | None = None,
    seed: int,
    checkpoint: Path,
    processes: Processes,
) -> list[Clustering]:
    """Cluster the features of both modalities on all processes of a run, each of which makes this call.

    Alone, this is `cluster_features` without the similarities. A clusterer with ``fit_parallel`` clusters on all processes,
    also where that is one, and keeps there what it has; for another one rank 0 does while the others wait.

    Args:
        image_features: unit norm, float, shape (N, D_image), on every process.
        text_features: unit norm, float, shape (N, D_text), on every process.
        clusterer: ``name`` or ``name:key=value,...`` of the clusterer.
        text_clusterer: the same for the texts; None takes `clusterer`.
        seed: seed of the run.
        checkpoint: folder, on a disk that all processes see, for what clusterers keep on the way; of these features, options
            and seed alone.
        processes: the processes.

    Returns:
        On rank 0 the clusterings of images and texts; on others what they have of them.

    Raises:
        PluginError: no such clusterer, or no such option.
        InputError: the clusterer refuses the features.
    """
    generator, made = epoch_generator(seed, 0), list[Clustering]()
    # A process of a group that does this by itself must not talk to the others, which do something else.
    together = processes.world_size > 1 or not (dist.is_available() and dist.is_initialized())

    def fit(plugin: Clusterer, features: Tensor) -> None:
        made.append(plugin.fit(features, generator=generator))

    for name, spec, features in (
        ("image", clusterer, image_features),
        ("text", text_clusterer or clusterer, text_features),
    ):
        plugin = registry.create("clusterer", spec)
        if together and hasattr(plugin, "fit_parallel"):
            generator.set_state(processes.first(generator.get_state))  # where rank 0 alone drew from it before
            made.append(plugin.fit_parallel(features, generator=generator, checkpoint=checkpoint / name))
        else:
            processes.first(partial(fit, plugin, features))
    return made


def check_clusterers(n_samples: int | None, clusterer: str, text_clusterer: str | None = None) -> None:
    """Build the clusterers and let them refuse a number of samples, where it is known, before anything is encoded for them.

    Raises:
        PluginError: no such clusterer, or no such option.
        InputError: an option is out of its range, or asks for more clusters than there are samples.
    """
    for spec in (clusterer, text_clusterer or clusterer):
        made = registry.create("clusterer", spec)
        if n_samples is not None and hasattr(made, "check_samples"):
            made.check_samples(n_samples)


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
