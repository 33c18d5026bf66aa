"""Figures of a batch and of the clusters, which a training run logs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.interfaces import Clusters, LossTerms
from clip_negatives.metrics import FalseNegatives
from clip_negatives.step import BatchSamples
from clip_negatives.training.weighting import batch_terms

PAIRS = 2**20  # pairs to count in a batch: all pairs up to batch size 1024, above it the pairs of evenly spaced images
PREFIX = "clip_negatives/"  # prefix of all figure names


def batch_figures(samples: BatchSamples, clusters: Clusters, terms: LossTerms | AnchorLoss) -> dict[str, float]:
    """Return the figures of a batch by name, counted on the CPU.

    * ``removed_share``: removed share of the incorrect pairs; absent for an anchor loss.
    * ``mean_weight``: mean weight of the kept pairs before normalisation; absent for an anchor loss.
    * ``false_negatives_per_anchor``: incorrect pairs with equal groups or, without groups, equal texts; absent if unknown.
    """
    n = len(samples)
    anchors = torch.arange(0, n, max(1, n**2 // PAIRS))
    truth = clusters.texts if clusters.groups is None else clusters.groups
    groups = None if truth is None or samples.ids is None else truth[samples.ids.cpu()]
    table = batch_terms(terms, samples).to("cpu") if isinstance(terms, LossTerms) else None
    metric = FalseNegatives()
    metric.update(torch.arange(n) if groups is None else groups, table, anchors)
    counts = metric.compute()
    figures = {} if table is None else {name: float(counts[name]) for name in ("removed_share", "mean_weight")}
    if groups is not None:
        figures["false_negatives_per_anchor"] = float(counts["per_anchor"])
    return {f"{PREFIX}{name}": value for name, value in figures.items()}


def logged_figures(logged: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the figures that a weighting logged in a step; reading them waits for a GPU."""
    return {f"{PREFIX}{name}": float(value) for name, value in logged.items()}


def cluster_figures(clusters: Clusters) -> dict[str, float]:
    """Return the smallest, mean and largest size of the clusters of images and of texts."""
    figures = {}
    for name, clustering in (("image", clusters.image), ("text", clusters.text)):
        sizes = clustering.sizes().double()
        for statistic in ("min", "mean", "max"):
            figures[f"{PREFIX}{name}_cluster_size_{statistic}"] = float(getattr(sizes, statistic)())
    return figures
