"""Clusters of made-up features that look like those of a catalogue: some items, each listed several times."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import centroid_similarity


def make_blobs(n_samples: int = 240, n_clusters: int = 12, dim: int = 16, seed: int = 0) -> Clusters:
    """Return clusters of features in blobs around random directions, with texts and groups, no cluster empty.

    Image and text clusters are of one number and different membership: a sample's text lies in the blob of its image or,
    one time in four, in another. Each blob holds three items (`Clusters.groups`); samples of one item share a text half the
    time.

    Args:
        n_samples: N, at least `n_clusters`.
        n_clusters: K, of images and of texts.
        dim: D.
        seed: of everything.

    Examples:
        >>> blobs = make_blobs(24, n_clusters=4, dim=8)
        >>> blobs.image_features.shape, blobs.image_similarity.shape, int(blobs.text.sizes().min()) > 0
        (torch.Size([24, 8]), torch.Size([4, 4]), True)
    """
    generator = epoch_generator(seed, 0)
    labels = _every_label(n_samples, n_clusters, generator)
    moved = torch.rand(n_samples, generator=generator) < 0.25
    moved[:n_clusters] = False  # the first K samples hold every cluster, which stays so
    text_labels = torch.where(moved, labels[torch.randperm(n_samples, generator=generator)], labels)
    groups = 3 * labels + torch.randint(3, (n_samples,), generator=generator)
    texts = 2 * groups + torch.randint(2, (n_samples,), generator=generator)
    order = torch.randperm(n_samples, generator=generator)
    image, image_features = _around(labels[order], n_clusters, dim, generator)
    text, text_features = _around(text_labels[order], n_clusters, dim, generator)
    similarity = centroid_similarity(image.centroids), centroid_similarity(text.centroids)
    return Clusters(image, text, *similarity, image_features, text_features, texts[order], groups[order])


def _every_label(n: int, k: int, generator: torch.Generator) -> Tensor:
    """Return labels 0 .. K-1 first, then uneven ones."""
    if n == k:
        return torch.arange(k)
    uneven = torch.multinomial(torch.linspace(1, 4, k), n - k, replacement=True, generator=generator)
    return torch.cat([torch.arange(k), uneven])


def _around(labels: Tensor, k: int, dim: int, generator: torch.Generator) -> tuple[Clustering, Tensor]:
    """Return a clustering with features spread around its centroids."""
    centroids = F.normalize(torch.randn(k, dim, generator=generator), dim=1)
    noise = torch.randn(len(labels), dim, generator=generator) * 0.4 / dim**0.5
    return Clustering(labels, centroids), F.normalize(centroids[labels] + noise, dim=1)


def changed_parts(clusters: Clusters, before: Clusters) -> list[str]:
    """Return the names of the tensors that differ."""
    found = []
    for item in dataclasses.fields(Clusters):
        now, was = getattr(clusters, item.name), getattr(before, item.name)
        pairs = [(now.labels, was.labels), (now.centroids, was.centroids)] if hasattr(now, "labels") else [(now, was)]
        if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in pairs):
            found.append(item.name)
    return found
