"""Initial centroids of k-means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from clip_negatives.sampling import epoch_generator
from clip_negatives_plugins.parallel_kmeans.assignment import Assignment, Job
from clip_negatives_plugins.parallel_kmeans.options import Start
from clip_negatives_plugins.parallel_kmeans.sums import Grid

SAMPLES_PER_CLUSTER = 16  # number of samples per cluster that ``kmeans++`` chooses from
GREEDY_CLUSTERS = 512  # up to this K, k-means++ takes the best of several samples for each centroid, as in scikit-learn
ROUNDS = 5  # rounds of ``kmeans||``, each of which adds about K samples; five are enough (Bahmani et al.)


def first_centroids(job: Job, init: Start, k: int, seed: int) -> Tensor:
    """Return K initial centroids, float32, shape (K, D), the same for any number of processes.

    * ``random``: a sample from each of K equal ranges of the data.
    * ``kmeans++`` (Arthur and Vassilvitskii, 2007): scikit-learn, on rank 0, on `SAMPLES_PER_CLUSTER` x K samples from equal
      ranges of the data. The time is proportional to K^2.
    * ``kmeans||`` (Bahmani et al., 2012, arXiv:1203.6402): in `ROUNDS` rounds, all processes add samples that are far from the
      samples chosen before. k-means++ then reduces them to K, each weighted by the number of samples near it. This takes about
      as long as five iterations, and is faster than k-means++ for thousands of clusters.

    Args:
        job: the features.
        init: one of the names above.
        k: number of clusters.
        seed: seed of all random draws.
    """
    if init == "kmeans||":
        return _scalable(job, k, seed)
    generator = epoch_generator(seed, 0)
    size = k if init == "random" else min(len(job.rows), max(SAMPLES_PER_CLUSTER * k, 1024))
    rows = job.rows.spread(size, generator)
    random_seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    return job.processes.first(lambda: _plus_plus(job.rows.take(rows), k, random_seed) if size > k else job.rows.take(rows))


def _plus_plus(points: Tensor, k: int, seed: int, weights: Tensor | None = None) -> Tensor:
    from sklearn.cluster import kmeans_plusplus

    trials = None if k <= GREEDY_CLUSTERS else 1
    sample_weight = None if weights is None else weights.numpy()
    centres, _ = kmeans_plusplus(points.numpy(), k, sample_weight=sample_weight, random_state=seed, n_local_trials=trials)
    return torch.from_numpy(centres.copy())


def _scalable(job: Job, k: int, seed: int) -> Tensor:
    """Return K centroids by k-means||, with Euclidean distances."""
    rows, processes = job.rows, job.processes
    longest = job.bound * rows.dim**0.5
    job = dataclasses.replace(job, spherical=False, far_grid=Grid.of(len(rows), 4 * longest**2))
    taken = new = rows.spread(1, epoch_generator(seed, 0))
    far = torch.full((sum(stop - start for start, stop in rows.blocks(processes)),), torch.inf)
    nearest = torch.zeros(len(far), dtype=torch.int32)
    for turn in range(1, ROUNDS + 2):
        assignment = processes.together(partial(_assign_to_samples, job, new))
        nearer = assignment.far < far
        far[nearer] = assignment.far[nearer]
        nearest[nearer] = assignment.labels[nearer] + len(taken) - len(new)
        assignment.far = far
        total = float(processes.sum(assignment.spread(job.far_grid)))
        if turn > ROUNDS or total == 0:
            break
        new = processes.concatenate(torch.cat([taken[:0], *_drawn(job, far, k / total, seed, turn)]))
        if len(new) == 0:
            break
        taken = torch.cat([taken, new])
    weights = processes.sum(nearest.bincount(minlength=len(taken)).double())
    if len(taken) < k:  # the data have few different samples
        extra = rows.spread(k, epoch_generator(seed, 1))
        taken, weights = torch.cat([taken, extra]), torch.cat([weights, torch.ones(k, dtype=torch.float64)])
    return processes.first(lambda: _plus_plus(rows.take(taken), k, seed, weights))


def _assign_to_samples(job: Job, samples: Tensor) -> Assignment:
    return job.assign(job.rows.take(samples))


def _drawn(job: Job, far: Tensor, factor: float, seed: int, turn: int) -> Iterator[Tensor]:
    """Yield the drawn rows of this process, by block; a row is drawn with probability `factor` times its distance.

    The draw for a row does not depend on the process.
    """
    rows = job.rows
    count = -(-len(rows) // rows.block_size)
    for start, stop in rows.blocks(job.processes):
        generator = epoch_generator(seed, 2 + turn * count + start // rows.block_size)
        drawn = torch.rand(stop - start, generator=generator, dtype=torch.float64)
        distances = far[start - job.first_row : stop - job.first_row].double()
        yield start + (drawn < factor * distances).nonzero().flatten()
