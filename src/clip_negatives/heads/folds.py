"""Folds of a data set: each part of the samples is held out once, and heads are trained on the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.clustering.similarity import similarities
from clip_negatives.errors import InputError
from clip_negatives.heads.agreement import MIN_DUPLICATE_AGREEMENT, Neighbourhoods
from clip_negatives.interfaces import Clustering, Clusters

MAX_SHARE = 0.5  # of the samples in one component: holding out more leaves too little to train on


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Samples to train on, and held-out samples.

    Attributes:
        train: sample ids, int64, ascending.
        held_out: sample ids, int64, ascending.
    """

    train: Tensor
    held_out: Tensor


def folds_of(components: Tensor, n_folds: int, seed: int = 0) -> list[Fold]:
    """Return folds in which all samples of a component are on the same side.

    The components, largest first, go to the fold with the fewest samples; ties are in random order.

    Args:
        components: component of each sample, int64, shape (N,): samples that may not be separated.
        n_folds: number of folds, at least 2.
        seed: seed of the order.

    Raises:
        InputError: there are fewer components than folds, or one of them has more than `MAX_SHARE` of the samples.
    """
    _, places, counts = components.unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise InputError(
            f"All samples are in one group (or are near-duplicates), so none can be held out. Use {argument('fold_by')} with "
            "a column that has several values."
        )
    if counts.max() > MAX_SHARE * len(components):
        share = float(counts.max()) / len(components)
        raise InputError(
            f"One group of samples (or near-duplicates) that must stay together has {100 * share:.0f} % of the data, too much "
            f"to hold out. Use {argument('fold_by')} with a column that has smaller groups."
        )
    if not 2 <= n_folds <= len(counts):
        raise InputError(
            f"{argument('folds')} must be 2 .. {len(counts)}, because the data have only {len(counts)} groups to hold out; got "
            f"{n_folds}."
        )
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    order = order[counts[order].argsort(descending=True, stable=True)]
    fold_of, filled = torch.empty(len(counts), dtype=torch.int64), [0] * n_folds
    for component in order.tolist():
        smallest = min(range(n_folds), key=filled.__getitem__)
        fold_of[component] = smallest
        filled[smallest] += int(counts[component])
    fold = fold_of[places]
    return [Fold((fold != number).nonzero().flatten(), (fold == number).nonzero().flatten()) for number in range(n_folds)]


def near_duplicates(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return the component of near-duplicates of each sample, int64, shape (N,): a group that is made without labels.

    Features are centred: the mean of the data is subtracted, then they get unit norm. Two samples are near-duplicates if one
    is among the `NEIGHBOURS` nearest of the other, both by image and by text, and
    ``([x_i . x_j]+ [y_i . y_j]+) ** AGREEMENT_EXPONENT > MIN_DUPLICATE_AGREEMENT``. Samples that a chain of near-duplicates
    connects are one component.

    Args:
        image_features: shape (N, D_image).
        text_features: shape (N, D_text).
    """
    n = len(image_features)
    if n < 2:
        return torch.zeros(n, dtype=torch.int64)
    pairs = Neighbourhoods.of(image_features, text_features).pairs()
    pairs = pairs.take(pairs.agreement > MIN_DUPLICATE_AGREEMENT)
    return components(n, pairs.left, pairs.right)


def components(n: int, left: Tensor, right: Tensor) -> Tensor:
    """Return the component of each of n samples, int64, shape (N,); the samples ``left[i]`` and ``right[i]`` are connected."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = left.numpy(), right.numpy()
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(n, n))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def part_of(clusters: Clusters, rows: Tensor) -> Clusters:
    """Return the clusters of some samples: the same labels and centroids, without the clusters that lose all samples.

    Args:
        clusters: the clusters.
        rows: sample ids, int64; sample i of the result is sample ``rows[i]``.
    """
    image, text = (_part(clustering, rows) for clustering in (clusters.image, clusters.text))
    optional = ("image_features", "text_features", "texts", "groups")
    kept: dict[str, Any] = {name: None if (value := getattr(clusters, name)) is None else value[rows] for name in optional}
    tables: dict[str, Any] = {"image_nearest": None, "text_nearest": None, **similarities(image, text)}
    return replace(clusters, image=image, text=text, **tables, **kept)


def _part(clustering: Clustering, rows: Tensor) -> Clustering:
    used, labels = clustering.labels[rows].unique(return_inverse=True)
    return Clustering(labels, clustering.centroids[used])


def batch_size_for(n_samples: int, largest: int) -> int:
    """Return the largest power of two that is at most a quarter of the samples, but at most `largest` and at least 2."""
    return min(largest, 1 << max(1, math.floor(math.log2(max(n_samples, 8) / 4))))
