"""Samplers made for checks, and the epochs that they yield."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clip_negatives.interfaces import Clusters, NegativeSampler, SamplingContext
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.subject import Subject

N, B = 100, 8
"""Samples and batch size of most checks; some samples fill no step."""


def make_sampler(
    plugin: Subject,
    *,
    n: int = N,
    batch_size: int = B,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    clusters: Clusters | None = None,
) -> NegativeSampler:
    """Return the sampler of one process, over `n` samples in blobs, each with a text."""
    given = make_blobs(n, n_clusters=min(12, n)) if clusters is None else clusters
    captions = [f"text {row} of {n}, in some words" for row in range(n)]
    sampler: NegativeSampler = plugin.create(
        SamplingContext(n, batch_size, rank=rank, world_size=world_size, seed=seed, clusters=given, captions=captions)
    )
    return sampler


def epoch_of(sampler: NegativeSampler) -> list[list[int]]:
    """Return the batches of an epoch, copied as they are yielded."""
    return [as_list(batch) for batch in sampler]


def as_list(batch: Any) -> list[int]:
    """Return a batch as numbers, whatever holds them: what holds them is the matter of one check."""
    return [int(index) for index in batch]


def by_content(batches: Iterable[Any]) -> list[list[int]]:
    """Return batches in an order of their own: which comes first is the matter of other checks."""
    return sorted(as_list(batch) for batch in batches)
