"""Balancing of clusters: a limit on their size."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives_plugins.kmeans.engines import BLOCK, Engine
from clip_negatives_plugins.kmeans.lloyd import Assignment


def balance(engine: Engine, features: Tensor, assignment: Assignment, centroids: Tensor, capacity: int) -> None:
    """Reduce clusters of more than `capacity` rows: move their farthest rows to other clusters.

    The rows move in rounds. In each round, every row is assigned to the nearest cluster with room; a cluster accepts its
    nearest new rows, as many as it has room for. The rest continue with the next round. A round fills at least one cluster, or
    places all rows. K and the centroids stay the same.

    Args:
        engine: what finds the nearest centroid.
        features: float, shape (N, D).
        assignment: clusters of all rows; changed in place.
        centroids: float32, shape (K, D).
        capacity: largest size of a cluster; K times `capacity` is at least N.
    """
    k, (labels, far) = len(centroids), assignment
    room = torch.full((k,), capacity)
    waiting = (labels.bincount(minlength=k) > capacity)[labels].nonzero().flatten()
    waiting = waiting[~_accepted(labels[waiting], far[waiting], room)]
    room = (capacity - labels.bincount(minlength=k)).clamp(min=0)
    while len(waiting):
        open_clusters = room.nonzero().flatten()
        for rows in waiting.split(BLOCK):
            found = engine.assign(features[rows], centroids[open_clusters])
            labels[rows], far[rows] = open_clusters[found.labels], found.far
        accepted = _accepted(labels[waiting], far[waiting], room)
        room -= labels[waiting[accepted]].bincount(minlength=k)
        waiting = waiting[~accepted]


def _accepted(labels: Tensor, far: Tensor, room: Tensor) -> Tensor:
    """Return which rows fit into their clusters, bool: the nearest first, ties in the order of the rows."""
    order = far.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount(minlength=len(room))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    return place < room[labels]
