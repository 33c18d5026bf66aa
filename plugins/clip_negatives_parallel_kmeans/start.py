"""Where k-means starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clip_negatives.sampling import epoch_generator
from clip_negatives_parallel_kmeans.assignment import Found, Work
from clip_negatives_parallel_kmeans.sums import Grid

SAMPLES_PER_CLUSTER = 16
"""``kmeans++`` looks at so many samples a cluster."""

GREEDY_CLUSTERS = 512
"""Up to so many clusters k-means++ tries several samples for each centroid and takes the best, as scikit-learn does."""

ROUNDS = 5
"""Rounds of ``kmeans||``, in each of which about K samples are taken: five suffice (Bahmani et al.)."""


def first_centroids(work: Work, init: str, k: int, seed: int) -> Tensor:
    """Return K samples to start from, float32, shape (K, D), the same for every number of processes.

    Args:
        work: the features.
        init: ``random``: one sample out of each of K even stretches of the data. ``kmeans++`` (Arthur and Vassilvitskii,
            2007): by scikit-learn, on `SAMPLES_PER_CLUSTER` K samples out of even stretches, in process 0. ``kmeans||``
            (Bahmani et al., 2012, arXiv:1203.6402): all processes take samples that are far from those taken before, and
            those are thinned out to K by k-means++, weighted with the number of samples near each. About five iterations'
            time; k-means++ alone grows with K^2 in one process, so for many thousand clusters this is the quicker one.
        k: K.
        seed: of all that is drawn.
    """
    generator = epoch_generator(seed, 0)
    if init == "kmeans||":
        return _scalable(work, k, seed)
    size = k if init == "random" else min(len(work.rows), max(SAMPLES_PER_CLUSTER * k, 1024))
    some = work.rows.spread(size, generator)
    drawn = int(torch.randint(2**31 - 1, (1,), generator=generator))
    return work.ranks.first(lambda: _plus_plus(work.rows.take(some), k, drawn) if size > k else work.rows.take(some))


def _plus_plus(points: Tensor, k: int, seed: int, weights: Tensor | None = None) -> Tensor:
    from sklearn.cluster import kmeans_plusplus

    more: dict[str, Any] = {} if weights is None else {"sample_weight": weights.numpy()}
    trials = None if k <= GREEDY_CLUSTERS else 1
    return torch.from_numpy(kmeans_plusplus(points.numpy(), k, random_state=seed, n_local_trials=trials, **more)[0].copy())


def _scalable(work: Work, k: int, seed: int) -> Tensor:
    """Return K centroids by k-means||; distances are Euclidean."""
    rows, ranks = work.rows, work.ranks
    longest = work.bound * rows.dim**0.5
    work = dataclasses.replace(work, spherical=False, far_grid=Grid.of(len(rows), 4 * longest**2))
    taken = rows.spread(1, epoch_generator(seed, 0))
    new = taken
    far = torch.full((sum(stop - start for start, stop in rows.blocks(ranks)),), torch.inf)
    home = torch.zeros(len(far), dtype=torch.int32)
    for turn in range(1, ROUNDS + 2):
        found = ranks.together(partial(_nearest_of, work, new))
        nearer = found.far < far
        far[nearer] = found.far[nearer]
        home[nearer] = found.labels[nearer] + len(taken) - len(new)
        found.far = far
        total = float(ranks.total(found.spread(work.far_grid)))
        if turn > ROUNDS or total == 0:
            break
        new = ranks.joined(torch.cat([taken[:0], *_drawn(work, found.far, k / total, seed, turn)]))
        if len(new) == 0:
            break
        taken = torch.cat([taken, new])
    weights = ranks.total(home.bincount(minlength=len(taken)).double())
    if len(taken) < k:  # few samples differ
        extra = rows.spread(k, epoch_generator(seed, 1))
        taken, weights = torch.cat([taken, extra]), torch.cat([weights, torch.ones(k, dtype=torch.float64)])
    return ranks.first(lambda: _plus_plus(rows.take(taken), k, seed, weights))


def _nearest_of(work: Work, samples: Tensor) -> Found:
    return work.assign(work.rows.take(samples))


def _drawn(work: Work, far: Tensor, factor: float, seed: int, turn: int) -> Iterator[Tensor]:
    """Yield the rows of this process that are taken, each with probability `factor` times its distance, block by block.

    What is drawn for a row is what another process would draw for it.
    """
    rows = work.rows
    count = -(-len(rows) // rows.block_size)
    for start, stop in rows.blocks(work.ranks):
        generator = epoch_generator(seed, 2 + turn * count + start // rows.block_size)
        drawn = torch.rand(stop - start, generator=generator, dtype=torch.float64)
        here = far[start - work.first : stop - work.first].double()
        yield start + (drawn < factor * here).nonzero().flatten()
