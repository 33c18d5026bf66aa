"""What a training run logs of its negatives: figures of a batch and of the clusters, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.metrics import FalseNegatives
from clip_negatives.terms import TENSORS_OF_TERMS

PAIRS = 2**20
"""Pairs of a batch that are looked at: those of all its images up to a batch of 1024, evenly spaced ones beyond."""

PREFIX = "clip_negatives/"
"""What the name of every figure begins with."""


def batch_figures(index: Tensor, clusters: Clusters, terms: LossTerms | AnchorLoss) -> dict[str, float]:
    """Return the figures of a batch, counted on the CPU.

    ``removed_share`` of the incorrect pairs, and ``mean_weight`` of those that are kept, before any normalisation; not of a
    loss that decides by what the model thinks. ``false_negatives_per_anchor``, pairs of one group or, where the data have
    none, of one text; not where neither is known.

    Args:
        index: the samples that are contrasted, int64, shape (B,).
        clusters: clusters of the data set.
        terms: log-weights of the data set.
    """
    index = index.cpu()
    anchors = torch.arange(0, len(index), max(1, len(index) ** 2 // PAIRS))
    truth = clusters.texts if clusters.groups is None else clusters.groups
    known = isinstance(terms, LossTerms)
    metric = FalseNegatives()
    of_batch = _of_batch(terms, index) if isinstance(terms, LossTerms) else None
    metric.update(torch.arange(len(index)) if truth is None else truth[index], of_batch, anchors)
    found = {name: float(value) for name, value in metric.compute().items()}
    figures = {name: found[name] for name in ("removed_share", "mean_weight") if known}
    if truth is not None:
        figures["false_negatives_per_anchor"] = found["per_anchor"]
    return {f"{PREFIX}{name}": value for name, value in figures.items()}


def cluster_figures(clusters: Clusters) -> dict[str, float]:
    """Return the smallest, the mean and the largest size of the clusters of images and of texts."""
    figures = {}
    for name, clustering in (("image", clusters.image), ("text", clusters.text)):
        sizes = clustering.sizes().double()
        for what, size in (("min", sizes.min()), ("mean", sizes.mean()), ("max", sizes.max())):
            figures[f"{PREFIX}{name}_cluster_size_{what}"] = float(size)
    return figures


def _of_batch(terms: LossTerms, index: Tensor) -> LossTerms:
    """Return the terms of a batch on the CPU, where they are read at once: the copy is waited for."""
    taken = terms.with_labels(index) if terms.by_label else terms.map_samples(lambda rows: rows[index.to(rows.device)])
    parts: dict[str, Any] = {name: part.cpu() for name in TENSORS_OF_TERMS if (part := getattr(taken, name)) is not None}
    return dataclasses.replace(taken, **parts)
