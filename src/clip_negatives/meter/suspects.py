"""How common suspect pairs are among all pairs of a data set."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.meter.truth import truths_of
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import pair_counts

SAMPLED_PAIRS = 200_000
"""Pairs that the share of similar samples is estimated from; the error of a share p is about sqrt(p / 200,000)."""

ROWS = 8192
"""Sampled pairs whose features are held at a time."""


def counted(folder: ClustersFolder, threshold: float) -> Iterator[tuple[str, float, bool]]:
    """Yield the shares that follow from the sizes of groups and clusters, without looking at pairs."""
    clusters = folder.clusters
    modalities = [
        (name, clustering, clusters.similarity_of(name, "the meter"))
        for name, clustering in (("image", clusters.image), ("text", clusters.text))
    ]
    for kind, truth in truths_of(folder).items():
        yield f"same {kind}", _same(truth), True
    for name, clustering, _ in modalities:
        yield f"same {name} cluster", _same(clustering.labels), True
    for name, clustering, similarity in modalities:
        counts = pair_counts(clustering.sizes())
        share = float((counts * (similarity > threshold)).sum() / counts.sum())
        yield f"{name} clusters with similarity over {threshold:g}", share, True


def sampled(folder: ClustersFolder, threshold: float, seed: int) -> Iterator[tuple[str, float, bool]]:
    """Yield the shares of similar samples, from pairs drawn at random: all N x N similarities are too many."""
    clusters, generator = folder.clusters, epoch_generator(seed, 0)
    left = torch.randint(clusters.n_samples, (SAMPLED_PAIRS,), generator=generator)
    # Any of the other samples: a step of 1 .. N-1, around the end.
    right = (left + torch.randint(1, clusters.n_samples, (SAMPLED_PAIRS,), generator=generator)) % clusters.n_samples
    for name, features in (("image", clusters.image_features), ("text", clusters.text_features)):
        if features is not None:
            over = 0
            for start in range(0, SAMPLED_PAIRS, ROWS):
                i, j = left[start : start + ROWS], right[start : start + ROWS]
                over += int(((features[i].float() * features[j].float()).sum(dim=1) > threshold).sum())
            yield f"{name}s with similarity over {threshold:g}", over / SAMPLED_PAIRS, False


def _same(labels: Tensor) -> float:
    """Return the share of pairs of two different samples with one label."""
    sizes, n = labels.bincount().double(), labels.numel()
    return float((sizes * (sizes - 1)).sum() / (n * (n - 1)))
