"""Clusters of the model that is being trained: every process encodes its share, the first clusters and stores them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pyarrow as pa
from torch import Tensor

from clip_negatives.artifacts import write_clusters
from clip_negatives.interfaces import Clusters
from clip_negatives.processes import from_first_rank
from clip_negatives.refresh import cluster_features, gather_rows


def recluster_shares(
    image: Tensor,
    text: Tensor,
    samples: pa.Table,
    folder: Path,
    *,
    clusterer: str,
    text_clusterer: str | None = None,
    seed: int = 0,
    epoch: int,
) -> Clusters:
    """Cluster the features that the processes computed in turn, and write a clusters folder.

    Args:
        image: of samples rank, rank + world_size, ..., unit norm, float32, shape (n, D_image).
        text: the same of the texts.
        samples: table of all samples, as `clip_negatives.artifacts.write_clusters` takes it.
        folder: where the first process writes; a folder of a run that stopped in this very epoch goes.
        clusterer: ``name`` or ``name:key=value,...``.
        text_clusterer: the same for the texts; None takes `clusterer`.
        seed: seed of the run.
        epoch: epoch before which this is done.

    Returns:
        The same clusters on every rank, with features.

    Raises:
        ClipNegativesError: on every rank, where the first cannot cluster or write.
    """
    image, text = (gather_rows(part, samples.num_rows).cpu() for part in (image, text))

    def fit() -> Clusters:
        clusters = cluster_features(image, text, clusterer=clusterer, text_clusterer=text_clusterer, seed=seed, epoch=epoch)
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_clusters(folder, clusters, samples, {"encoders": {"model": f"the model being trained, before epoch {epoch}"}})
        # The features are on every rank already.
        return dataclasses.replace(clusters, image_features=None, text_features=None)

    clusters: Clusters = from_first_rank(fit)
    return dataclasses.replace(clusters, image_features=image, text_features=text)
