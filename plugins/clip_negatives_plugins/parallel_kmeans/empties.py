"""Filling of empty clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.clustering.options import check_distinct
from clip_negatives_plugins.parallel_kmeans.assignment import Assignment, Job


def reseed(job: Job, assignment: Assignment, centroids: Tensor, empty: Tensor) -> Tensor:
    """Set the centroids of `empty` clusters to the samples farthest from their centroids, all different points.

    Return the clusters that got a sample; these are fewer than `empty` if too few samples differ.
    """
    candidates, _ = job.farthest(assignment, 2 * len(empty) + 64)

    def distinct() -> list[Tensor]:
        points: dict[bytes, Tensor] = {}
        for point in job.rows.take(candidates):
            points.setdefault(point.numpy().tobytes(), point)
        return list(points.values())[: len(empty)]

    points = job.processes.together(distinct)
    filled = empty[: len(points)]
    if points:
        centroids[filled] = job.unit(torch.stack(points))
    return filled


def fill(job: Job, assignment: Assignment, centroids: Tensor, *, refuse_equal: bool) -> None:
    """Move into each empty cluster the sample farthest from its centroid, but never the last sample of a cluster.

    Labels and centroids are changed in place. If fewer than K samples differ, equal samples get different clusters, or with
    `refuse_equal` an `InputError` is raised.
    """
    k = len(centroids)
    sizes = job.processes.sum(assignment.labels.bincount(minlength=k))
    empty = (sizes == 0).nonzero().flatten()
    if not len(empty):
        return
    if refuse_equal:
        job.processes.first(lambda: check_distinct(job.rows.distinct(k), k))
    candidates, moved = 2 * len(empty) + 64, torch.empty(0, dtype=torch.int64)
    while len(moved) < len(empty):
        moved = _movable(*job.farthest(assignment, candidates), sizes, len(empty))
        candidates *= 4
    first = job.first_row
    own = (moved >= first) & (moved < first + len(assignment.labels))
    assignment.labels[moved[own] - first] = empty[own].int()
    centroids[empty] = job.unit(job.processes.together(lambda: job.rows.take(moved)))


def _movable(numbers: Tensor, labels: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Return the first `count` samples that leave no cluster empty: at most s - 1 of the s samples of a cluster."""
    by_label = labels.argsort(stable=True)
    counts = labels.bincount(minlength=len(sizes))
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(by_label)
    place[by_label] = torch.arange(len(labels)) - starts[labels[by_label]]
    return numbers[place < sizes[labels] - 1][:count]
