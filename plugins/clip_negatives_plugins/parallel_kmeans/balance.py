"""Balancing of clusters: a limit on their size."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives_plugins.parallel_kmeans.assignment import Assignment, CentroidSearch, Job
from clip_negatives_plugins.parallel_kmeans.sums import Tally


def balance(job: Job, assignment: Assignment, centroids: Tensor, capacity: int, tally: Tally | None = None) -> None:
    """Reduce clusters of more than `capacity` samples: move their farthest samples to other clusters.

    The samples move in rounds. In each round, every sample is assigned to the nearest cluster with room; a cluster accepts its
    nearest new samples, as many as it has room for. The rest continue with the next round. A round fills at least one cluster,
    or places all samples. K stays the same: clusters are not split, but moved samples pull their new centroids towards the
    dense region in the next iteration.

    Memory of a process: about 40 bytes for each sample of a too large cluster and for each moved sample, of all processes.

    Args:
        job: features and processes.
        assignment: clusters of all rows of this process; changed in place.
        centroids: float32, shape (K, D).
        capacity: largest size of a cluster; K times `capacity` is at least N.
        tally: sums of the clusters on this process; changed in place.
    """
    k, processes = len(centroids), job.processes
    sizes = processes.sum(assignment.labels.bincount(minlength=k))
    if int(sizes.max()) <= capacity:
        return
    before = assignment.labels.clone()
    members = (sizes > capacity)[assignment.labels.long()].nonzero().flatten()
    waiting = members[~_accepted(job, assignment, members, torch.full((k,), capacity))]
    room = (capacity - sizes).clamp(min=0)
    while int(processes.sum(torch.tensor(len(waiting)))):
        _assign_to_open(job, assignment, waiting, centroids, room.nonzero().flatten())
        accepted = _accepted(job, assignment, waiting, room)
        joined = processes.sum(assignment.labels[waiting[accepted]].bincount(minlength=k))
        room, waiting = room - joined, waiting[~accepted]
    if tally is not None:
        processes.together(lambda: _update_sums(job, assignment, before, tally))


def _assign_to_open(job: Job, assignment: Assignment, places: Tensor, centroids: Tensor, open_clusters: Tensor) -> None:
    """Assign the rows at `places` to the nearest of the `open_clusters`, the clusters with room."""

    def assign() -> None:
        search = CentroidSearch(centroids[open_clusters], job.spherical, job.device)
        for part in _by_block(job, places):
            labels, far = search.nearest(job.rows.take(part + job.first_row).to(job.device))
            assignment.labels[part], assignment.far[part] = open_clusters[labels.cpu()].int(), far.cpu()

    job.processes.together(assign)


def _by_block(job: Job, places: Tensor) -> list[Tensor]:
    """Split `places` of this process by block: matrix products are then the same for any number of processes."""
    block = (places + job.first_row) // job.rows.block_size
    return list(places.split(block.unique_consecutive(return_counts=True)[1].tolist())) if len(places) else []


def _accepted(job: Job, assignment: Assignment, places: Tensor, room: Tensor) -> Tensor:
    """Return which rows at `places` fit into their clusters, bool: the nearest first, ties in the order of the rows."""
    concatenate = job.processes.concatenate
    labels, far = concatenate(assignment.labels[places].long()), concatenate(assignment.far[places])
    order = far.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount(minlength=len(room))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    start = sum(job.processes.gather(len(places))[: job.processes.rank])
    return (place < room[labels])[start : start + len(places)]


def _update_sums(job: Job, assignment: Assignment, before: Tensor, tally: Tally) -> None:
    """Move rows with a changed label from the sums of their old cluster to those of their new cluster."""
    for part in _by_block(job, (assignment.labels != before).nonzero().flatten()):
        rows = job.grid.round(job.rows.take(part + job.first_row).to(job.device))
        tally.add(rows, before[part].long().to(job.device), -1)
        tally.add(rows, assignment.labels[part].long().to(job.device))
