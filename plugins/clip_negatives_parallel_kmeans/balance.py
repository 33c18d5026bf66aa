"""Clusters that hold no more than their share."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives_parallel_kmeans.assignment import Found, Nearest, Work
from clip_negatives_parallel_kmeans.sums import Tally


def balance(work: Work, found: Found, centroids: Tensor, capacity: int, tally: Tally | None = None) -> None:
    """Move the samples of over-full clusters that are farthest from their centroid to the nearest one with room.

    Members are moved, and clusters not split, because K stays what was asked for and every sample stays with the nearest
    centroid that may take it; in an iteration the moved samples draw their new centroids to where the data are dense, which
    splits the over-full cluster from the next iteration on. Samples ask in turns: each that has no place the nearest
    centroid with room, which takes the nearest of those that ask. Each turn fills a cluster or places all. For its turns a
    process holds some 40 bytes for each sample that is in an over-full cluster or has no place, of all processes.

    Args:
        work: the features.
        found: of all rows, those of this process; labels and distances are changed in place.
        centroids: float32, shape (K, D).
        capacity: the most samples of a cluster; K times as many are at least N.
        tally: sums of this process, which follow the samples.
    """
    k = len(centroids)
    sizes = work.ranks.total(found.labels.bincount(minlength=k))
    if int(sizes.max()) <= capacity:
        return
    before = found.labels.clone()
    crowded = (sizes > capacity)[found.labels.long()].nonzero().flatten()
    room = torch.full((k,), capacity)
    waiting = crowded[~_taken(work, found, crowded, room)]
    room = (capacity - sizes).clamp(min=0)
    while int(work.ranks.total(torch.tensor(len(waiting)))):
        _ask(work, found, waiting, centroids, room.nonzero().flatten())
        taken = _taken(work, found, waiting, room)
        joined = work.ranks.total(found.labels[waiting[taken]].bincount(minlength=k))
        room, waiting = room - joined, waiting[~taken]
    if tally is not None:
        work.ranks.together(lambda: _follow(work, found, before, tally))


def _ask(work: Work, found: Found, places: Tensor, centroids: Tensor, among: Tensor) -> None:
    """Set the labels and distances of some rows of this process to the nearest of some of the centroids."""

    def search() -> None:
        nearest = Nearest(centroids[among], work.spherical, work.device)
        for some in _by_block(work, places):
            labels, far = nearest.of(work.rows.take(some + work.first).to(work.device))
            found.labels[some], found.far[some] = among[labels.cpu()].int(), far.cpu()

    work.ranks.together(search)


def _by_block(work: Work, places: Tensor) -> list[Tensor]:
    """Return `places` of this process block by block, so that the pieces are the same for any number of processes."""
    block = (places + work.first) // work.rows.block_size
    return list(places.split(block.unique_consecutive(return_counts=True)[1].tolist())) if len(places) else []


def _taken(work: Work, found: Found, places: Tensor, room: Tensor) -> Tensor:
    """Return which of the rows at `places` their clusters take: as many as have room, the nearest, of equals the first."""
    labels, far = work.ranks.joined(found.labels[places].long()), work.ranks.joined(found.far[places])
    order = far.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount(minlength=len(room))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    taken = place < room[labels]
    lengths = work.ranks.joined(torch.tensor([len(places)]))
    start = int(lengths[: work.ranks.rank].sum())
    return taken[start : start + len(places)]


def _follow(work: Work, found: Found, before: Tensor, tally: Tally) -> None:
    """Take moved rows out of the sums of their old clusters and add them to the new: on a grid that is exact."""
    for some in _by_block(work, (found.labels != before).nonzero().flatten()):
        rows = work.grid.round(work.rows.take(some + work.first).to(work.device))
        tally.add(rows, before[some].long().to(work.device), -1)
        tally.add(rows, found.labels[some].long().to(work.device))
