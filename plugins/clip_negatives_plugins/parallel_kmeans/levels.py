"""Two levels, clusters within cells: for large K, comparing every sample with every centroid takes too long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from clip_negatives.clustering.options import check_distinct
from clip_negatives.distributed.processes import ALONE
from clip_negatives.progress import current, shown, stage
from clip_negatives.sampling import epoch_generator
from clip_negatives_plugins.parallel_kmeans.assignment import Assignment, Job
from clip_negatives_plugins.parallel_kmeans.balance import balance
from clip_negatives_plugins.parallel_kmeans.checkpoint import Checkpoint
from clip_negatives_plugins.parallel_kmeans.iterations import KMeansRun
from clip_negatives_plugins.parallel_kmeans.options import Options
from clip_negatives_plugins.parallel_kmeans.rows import Rows

CELL_BYTES = 2**28  # largest cell held in memory; the rows of a larger cell are read in each iteration


def two_levels(job: Job, options: Options, k: int, seed: int, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Return labels, int32, shape (N,), and centroids, float32, shape (K, D), of clusters within about sqrt(K) cells.

    All processes find the cells together. One process then clusters each cell into a part of the K clusters that is
    proportional to the size of the cell.
    """
    job.processes.first(lambda: check_distinct(job.rows.distinct(k), k))  # not checked again within the cells
    options = dataclasses.replace(options, n_clusters=None, max_share=None, levels=1)
    assignment, centres = KMeansRun(job, options, max(1, round(math.sqrt(k))), seed, checkpoint).clustered()
    cell_of = job.processes.concatenate(assignment.labels)
    sizes = cell_of.bincount(minlength=len(centres))
    parts = apportion(sizes, k)
    starts = parts.cumsum(0) - parts
    labels, centroids = torch.zeros_like(cell_of), torch.zeros(k, job.rows.dim)

    def cluster(cells: Sequence[int]) -> None:
        for cell in cells:
            index, first, size = (cell_of == cell).nonzero().flatten(), int(starts[cell]), int(parts[cell])
            part = checkpoint.part(f"cell-{cell}", partial(_cell, job, options, seed, index, cell, size))
            labels[index], centroids[first : first + size] = part["labels"] + first, part["centroids"]

    # The largest cells first, one per process at a time, so that the cells of a turn take about the same time.
    order = (sizes * parts).argsort(descending=True, stable=True).tolist()
    with stage(current().title, len(order), "cells") as running:
        for turn in range(0, len(order), job.processes.world_size):
            cells = order[turn : turn + job.processes.world_size]
            job.processes.together(partial(cluster, job.processes.mine(cells)))
            running.advance(len(cells))
    return job.processes.sum(labels), job.processes.sum(centroids)


def balanced(job: Job, labels: Tensor, centroids: Tensor, capacity: int) -> Tensor:
    """Return labels, int32, shape (N,), with at most `capacity` samples per cluster; searches only for moved samples."""
    blocks = job.rows.blocks(job.processes)
    share = labels[job.first_row : blocks[-1][1]] if blocks else labels[:0]
    assignment = Assignment(blocks, share.clone(), torch.empty(len(share)))

    def measure() -> None:
        for start, stop in blocks:
            places = slice(start - job.first_row, stop - job.first_row)
            rows, own = job.rows.read(start, stop), centroids[assignment.labels[places].long()]
            far = rows.norm(dim=1) - (rows * own).sum(1) if job.spherical else (rows - own).square().sum(1)
            assignment.far[places] = far.clamp(min=0)

    job.processes.together(measure)
    balance(job, assignment, centroids, capacity)
    return job.processes.concatenate(assignment.labels)


def apportion(sizes: Tensor, k: int) -> Tensor:
    """Distribute K >= C clusters among C cells, in proportion to their sizes: from 1 to the number of samples of a cell.

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


def _cell(job: Job, options: Options, seed: int, index: Tensor, cell: int, k: int) -> dict[str, Tensor]:
    """Return the clusters of one cell: labels within the cell, int32, and centroids."""
    features = job.rows.features
    if len(index) * job.rows.dim * features.element_size() <= CELL_BYTES:
        rows = Rows(features.index_select(0, index), job.rows.block_size)
    else:
        rows = Rows(features, job.rows.block_size, index)
    inner = Job.of(rows, ALONE, job.device, job.spherical)
    random_seed = int(torch.randint(2**31 - 1, (1,), generator=epoch_generator(seed, cell)))
    with shown(False):  # the progress of `two_levels` counts the cells
        run = KMeansRun(inner, options, k, random_seed, Checkpoint(None, {}, ALONE))
        assignment, centroids = run.clustered(refuse_equal=False)
    return {"labels": assignment.labels, "centroids": centroids}
