"""The false-negative meter: how many of a batch's incorrect pairs are suspect, and what a method would do about it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms, SamplingContext
from clip_negatives.metrics import FalseNegatives
from clip_negatives.similarity import pair_counts

BATCHES = 50
"""Batches of the sampler that are looked at for each method."""


@dataclass(frozen=True, slots=True)
class Suspects:
    """Say how common one kind of suspect pair is among the incorrect pairs of uniformly drawn batches.

    Attributes:
        kind: what the two samples of such a pair share.
        share: share of all pairs of two different samples, 0 .. 1, exact.
        per_anchor: expected number in a batch for each sample, ``share * (batch_size - 1)``.
    """

    kind: str
    share: float
    per_anchor: float


@dataclass(frozen=True, slots=True)
class Treatment:
    """Say what a sampler and a weighting make of the pairs, measured on batches of the sampler.

    Attributes:
        sampler: as given.
        weighting: as given.
        truth: what counts as a false negative here: "group", or "text" where the data have no groups.
        per_anchor: false negatives of a sample in a batch that the sampler composes.
        per_anchor_kept: those of them that the weighting does not remove.
        removed_share: share of all incorrect pairs that the weighting removes.
        batches: batches that this is measured on.
    """

    sampler: str
    weighting: str
    truth: str
    per_anchor: float
    per_anchor_kept: float
    removed_share: float
    batches: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Hold what the meter shows.

    Attributes:
        n_samples: N.
        batch_size: B, of all processes together.
        suspects: by kind.
        treatments: in-batch negatives first, then the chosen method.
    """

    n_samples: int
    batch_size: int
    suspects: tuple[Suspects, ...]
    treatments: tuple[Treatment, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return dataclasses.asdict(self)


def meter(
    folder: ClustersFolder,
    batch_size: int,
    *,
    sampler: str = "cluster_similarity",
    weighting: str = "weighted_infonce",
    threshold: float = 0.9,
    seed: int = 0,
) -> Reading:
    """Read the meter.

    Args:
        folder: the clusters.
        batch_size: batch of all processes together.
        sampler: the method's sampler, ``name`` or ``name:key=value,...``.
        weighting: the method's weighting.
        threshold: cosine over which the clusters of two images count as similar, -1 .. 1.
        seed: seed of the batches.

    Raises:
        InputError: the batch is not within 2 .. N.
        PluginError: a name or an option is unknown.
    """
    n = folder.clusters.n_samples
    if not 2 <= batch_size <= n:
        raise InputError(f"Expected a batch size within 2 .. {n}, the number of samples, got {batch_size}.")
    suspects = tuple(
        Suspects(kind, share, share * (batch_size - 1)) for kind, share in _shares(folder, threshold)
    )
    methods = dict.fromkeys([("in_batch", "uniform"), (sampler, weighting)])
    treatments = tuple(_treatment(folder, batch_size, *method, seed) for method in methods)
    return Reading(n, batch_size, suspects, treatments)


def codes(values: Sequence[str]) -> Tensor:
    """Return a number for each value, equal for equal values, int64, shape (N,)."""
    return torch.from_numpy(np.unique(np.asarray(values), return_inverse=True)[1])


def truth_of(folder: ClustersFolder) -> tuple[str, Tensor]:
    """Return what tells false negatives in these data, "group" or "text", and its codes, int64, shape (N,)."""
    kind = "group" if "group" in folder.samples.column_names else "text"
    return kind, codes(folder.samples[kind].to_pylist())


def _shares(folder: ClustersFolder, threshold: float) -> Iterable[tuple[str, float]]:
    """Yield the share of pairs of each kind, counted from sizes and not from pairs."""
    clusters, samples = folder.clusters, folder.samples
    yield "same text", _same(codes(samples["text"].to_pylist()))
    if "group" in samples.column_names:
        yield "same group", _same(codes(samples["group"].to_pylist()))
    yield "same image cluster", _same(clusters.image.labels)
    yield "same text cluster", _same(clusters.text.labels)
    counts = pair_counts(clusters.image.sizes())
    over = float((counts * (clusters.image_similarity > threshold)).sum() / counts.sum())
    yield f"image clusters with similarity over {threshold:g}", over


def _same(labels: Tensor) -> float:
    """Return the share of pairs of two different samples with one label."""
    sizes, n = labels.bincount().double(), labels.numel()
    return float((sizes * (sizes - 1)).sum() / (n * (n - 1)))


def _treatment(folder: ClustersFolder, batch_size: int, sampler: str, weighting: str, seed: int) -> Treatment:
    clusters = folder.clusters
    context = SamplingContext(clusters.n_samples, batch_size, seed=seed, clusters=clusters)
    batches = itertools.islice(registry.create("negative_sampler", sampler, context), BATCHES)
    terms: LossTerms = registry.create("loss_weighting", weighting)(clusters)
    truth, group = truth_of(folder)
    metric = FalseNegatives()
    for batch in batches:
        index = torch.tensor(batch)
        metric.update(group[index], None if terms.neutral else terms.take(index))
    found = metric.compute()
    return Treatment(
        sampler=sampler,
        weighting=weighting,
        truth=truth,
        per_anchor=float(found["per_anchor"]),
        per_anchor_kept=float(found["per_anchor_kept"]),
        removed_share=float(found["removed_share"]),
        batches=int(found["batches"]),
    )
