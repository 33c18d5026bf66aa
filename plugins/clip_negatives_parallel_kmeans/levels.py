"""Clusters within clusters, for so many that comparing every sample with every centroid takes too long."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor

from clip_negatives.sampling import epoch_generator
from clip_negatives_parallel_kmeans.assignment import Found, Work
from clip_negatives_parallel_kmeans.balance import balance
from clip_negatives_parallel_kmeans.checkpoint import Checkpoint
from clip_negatives_parallel_kmeans.empties import check_distinct
from clip_negatives_parallel_kmeans.iterations import KMeansRun
from clip_negatives_parallel_kmeans.options import Options
from clip_negatives_parallel_kmeans.ranks import Ranks
from clip_negatives_parallel_kmeans.rows import Rows

CELL_BYTES = 2**28
"""A cell is read once and held if it is not larger, else its rows are read in each iteration."""


def two_levels(work: Work, options: Options, k: int, seed: int, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Return the clusters of about sqrt(K) cells: labels, int32, shape (N,), and centroids, float32, shape (K, D).

    The cells are clusters that all processes find together. Each is then clustered by one process, into a part of the K
    clusters that is proportional to its size.

    Raises:
        InputError: fewer than K samples differ; on every process alike.
    """
    check_distinct(work, k)  # within the cells equal samples are not refused
    options = dataclasses.replace(options, n_clusters=None, max_share=None, levels=1)
    found, centres = KMeansRun(work, options, max(1, round(math.sqrt(k))), seed, checkpoint).clustered()
    home = work.ranks.joined(found.labels)
    parts = apportion(home.bincount(minlength=len(centres)), k)
    starts = parts.cumsum(0) - parts
    labels, centroids = torch.zeros_like(home), torch.zeros(k, work.rows.dim)
    # The largest first, one for each process at a time: those that are at work together take about as long.
    cost = home.bincount(minlength=len(centres)) * parts
    order = cost.argsort(descending=True, stable=True).tolist()

    def cluster(cells: list[int]) -> None:
        for cell in cells:
            index, first, size = (home == cell).nonzero().flatten(), int(starts[cell]), int(parts[cell])
            inner, within = _cell(work, options, seed, index, cell, size, checkpoint)
            labels[index], centroids[first : first + size] = inner + first, within

    for turn in range(0, len(order), work.ranks.size):
        mine = order[turn : turn + work.ranks.size][work.ranks.rank : work.ranks.rank + 1]
        work.ranks.together(partial(cluster, mine))
    return work.ranks.total(labels), work.ranks.total(centroids)


def balanced(work: Work, labels: Tensor, centroids: Tensor, capacity: int) -> Tensor:
    """Return labels, int32, shape (N,), with which no cluster holds more than `capacity`.

    Only the samples that move are compared with all K centroids.
    """
    blocks = work.rows.blocks(work.ranks)
    share = labels[work.first : blocks[-1][1]] if blocks else labels[:0]
    found = Found(blocks, share.clone(), torch.empty(len(share)))

    def measure() -> None:
        for start, stop in blocks:
            some = slice(start - work.first, stop - work.first)
            rows, own = work.rows.read(start, stop), centroids[found.labels[some].long()]
            far = rows.norm(dim=1) - (rows * own).sum(1) if work.spherical else (rows - own).square().sum(1)
            found.far[some] = far.clamp(min=0)

    work.ranks.together(measure)
    balance(work, found, centroids, capacity)
    return work.ranks.joined(found.labels)


def apportion(sizes: Tensor, k: int) -> Tensor:
    """Return how many of K clusters each cell gets: in proportion to its size, at least 1, at most one a sample; in all K.

    Args:
        sizes: samples of each cell, int64, shape (C,), at least 1 each, together at least K.
        k: at least C.

    Examples:
        >>> apportion(torch.tensor([60, 30, 9, 1]), 10)
        tensor([5, 3, 1, 1])
    """
    quota = sizes.double() * k / int(sizes.sum())
    parts = quota.long().clamp(min=1).minimum(sizes)
    while (missing := k - int(parts.sum())) != 0:
        step = 1 if missing > 0 else -1
        free = parts < sizes if missing > 0 else parts > 1
        due = (step * (quota - parts)).masked_fill(~free, -torch.inf).argsort(descending=True, stable=True)
        parts[due[: min(abs(missing), int(free.sum()))]] += step
    return parts


def _cell(
    work: Work, options: Options, seed: int, index: Tensor, cell: int, k: int, checkpoint: Checkpoint
) -> tuple[Tensor, Tensor]:
    """Return the clusters of one cell, made or found in the checkpoint: labels within it, int32, and centroids."""
    kept = checkpoint.load_part(f"cell-{cell}")
    if kept is None:
        features = work.rows.features
        alone, nothing = Ranks(), Checkpoint(None, {}, Ranks())
        if len(index) * work.rows.dim * features.element_size() <= CELL_BYTES:
            rows = Rows(features.index_select(0, index), work.rows.block_size)
        else:
            rows = Rows(features, work.rows.block_size, index)
        inner = Work.of(rows, alone, work.device, work.spherical)
        drawn = int(torch.randint(2**31 - 1, (1,), generator=epoch_generator(seed, cell)))
        found, centroids = KMeansRun(inner, options, k, drawn, nothing).clustered(refuse_equal=False)
        kept = {"labels": found.labels, "centroids": centroids}
        checkpoint.save_part(f"cell-{cell}", kept)
    return kept["labels"], kept["centroids"]
