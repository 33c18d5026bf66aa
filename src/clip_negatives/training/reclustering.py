"""Re-clustering with the model being trained: every process encodes its share; rank 0 clusters and stores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from clip_negatives.clustering.fit import cluster_features
from clip_negatives.distributed.gather import gather_rows
from clip_negatives.distributed.processes import Processes
from clip_negatives.interfaces import Clusters
from clip_negatives.storage.clusters_folder import write_clusters

Features = tuple[Tensor, Tensor]  # of images and texts, each of shape (n, D)


@torch.no_grad()
def encode_share(
    model: nn.Module, dataset: Any, encode: Callable[[Any], Features], *, rank: int, world_size: int, **options: Any
) -> Features:
    """Return the features of samples rank, rank + world_size, ... of `dataset`, computed in evaluation mode.

    `encode` returns the features of a batch; `options` are options of the `DataLoader`.
    """
    share = Subset(dataset, range(rank, len(dataset), world_size))
    # Without its own generator, the loader would draw a seed from the global generator, which would change the training.
    loader: DataLoader[Any] = DataLoader(share, generator=torch.Generator(), **options)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    parts = [encode(batch) for batch in loader]
    for module, mode in modes.items():
        module.training = mode
    image, text = (torch.cat(side) for side in zip(*parts, strict=True))
    return image, text


def recluster_shares(
    image: Tensor, text: Tensor, samples: pa.Table, folder: Path, previous: Clusters | None, *, epoch: int, **options: Any
) -> Clusters:
    """Cluster the features of all processes before an epoch, write a clusters folder, and return the clusters on every rank.

    `image` and `text` are the features from `encode_share`, unit norm, float32; `samples` is the table of all samples;
    `options` go to `cluster_features`. The new clusters keep the texts and groups of `previous`.
    """
    image, text = (gather_rows(part, samples.num_rows).cpu() for part in (image, text))

    def fit() -> Clusters:
        clusters = cluster_features(image, text, epoch=epoch, **options)
        write_clusters(folder, clusters, samples, {"encoders": {"model": f"the model being trained, before epoch {epoch}"}})
        return dataclasses.replace(clusters, image_features=None, text_features=None)  # not sent: every rank has the features

    clusters = Processes.current().first(fit)
    return with_truth_of(previous, dataclasses.replace(clusters, image_features=image, text_features=text))


def with_truth_of(previous: Clusters | None, clusters: Clusters) -> Clusters:
    """Return `clusters` with the texts and groups of `previous`."""
    return clusters if previous is None else dataclasses.replace(clusters, texts=previous.texts, groups=previous.groups)
