"""Clusters without a sample, which none may be."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives_parallel_kmeans.assignment import Found, Work


def reseed(work: Work, found: Found, centroids: Tensor, empty: Tensor) -> Tensor:
    """Let clusters start anew at the samples of `found` that are farthest from their centroids, each at another point.

    Args:
        work: the features.
        found: where the samples of this process were.
        centroids: float32, shape (K, D), changed in place.
        empty: the clusters, int64; the same on all processes.

    Returns:
        The clusters that got a sample; fewer where too few samples differ.
    """
    candidates, _ = work.farthest(found, 2 * len(empty) + 64)

    def distinct() -> list[Tensor]:
        points: dict[bytes, Tensor] = {}
        for point in work.rows.take(candidates):
            points.setdefault(point.numpy().tobytes(), point)
        return list(points.values())[: len(empty)]

    points = work.ranks.together(distinct)
    filled = empty[: len(points)]
    if points:
        centroids[filled] = F.normalize(torch.stack(points), dim=1) if work.spherical else torch.stack(points)
    return filled


def check_distinct(work: Work, k: int) -> None:
    """Refuse fewer than K different samples.

    Raises:
        InputError: there are fewer; on every process alike.
    """
    if (distinct := work.ranks.first(lambda: work.rows.distinct(k))) < k:
        raise InputError(
            f"Expected at least {k} different samples for as many clusters, got {distinct}. Use n_clusters={distinct} or fewer."
        )


def fill(work: Work, found: Found, centroids: Tensor, *, refuse_equal: bool) -> None:
    """Give each empty cluster the sample that is farthest from its own centroid and does not leave that one empty.

    Args:
        work: the features.
        found: labels of the samples of this process, in blocks, changed in place.
        centroids: float32, shape (K, D), changed in place.
        refuse_equal: refuse fewer different samples than clusters, or put equal ones into different clusters.

    Raises:
        InputError: fewer than K samples differ.
    """
    k = len(centroids)
    sizes = work.ranks.total(found.labels.bincount(minlength=k))
    empty = (sizes == 0).nonzero().flatten()
    if not len(empty):
        return
    if refuse_equal:
        check_distinct(work, k)
    wanted, moved = 2 * len(empty) + 64, torch.empty(0, dtype=torch.int64)
    while len(moved) < len(empty):
        moved = _movable(*work.farthest(found, wanted), sizes, len(empty))
        wanted *= 4
    first = work.first
    own = (moved >= first) & (moved < first + len(found.labels))
    found.labels[moved[own] - first] = empty[own].int()
    points = work.ranks.together(lambda: work.rows.take(moved))
    centroids[empty] = F.normalize(points, dim=1) if work.spherical else points


def _movable(numbers: Tensor, labels: Tensor, sizes: Tensor, wanted: int) -> Tensor:
    """Return the first `wanted` of the samples that can be taken from their clusters one after the other."""
    # A cluster of s samples can give s - 1: those of its samples that come first.
    by_label = labels.argsort(stable=True)
    counts = labels.bincount(minlength=len(sizes))
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(by_label)
    place[by_label] = torch.arange(len(labels)) - starts[labels[by_label]]
    return numbers[place < sizes[labels] - 1][:wanted]
