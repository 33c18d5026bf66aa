"""Clusters of random features that resemble a catalogue with several listings of each item."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.similarity import centroid_similarity
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.sampling import epoch_generator


def make_blobs(n_samples: int = 240, n_clusters: int = 12, dim: int = 16, seed: int = 0) -> Clusters:
    """Return clusters of features in blobs around random directions, with texts and groups; no cluster is empty.

    There are `n_clusters` image clusters and as many text clusters; `n_samples` is at least `n_clusters`. A quarter of the
    samples draw the blob of their text at random; otherwise image and text are in the same blob. Each blob holds three items
    (`Clusters.groups`), each with two texts.

    Examples:
        >>> blobs = make_blobs(24, n_clusters=4, dim=8)
        >>> blobs.image_features.shape, blobs.image_similarity.shape, int(blobs.text.sizes().min()) > 0
        (torch.Size([24, 8]), torch.Size([4, 4]), True)
    """
    generator = epoch_generator(seed, 0)
    labels = torch.arange(n_clusters)
    if n_samples > n_clusters:
        more = torch.multinomial(torch.linspace(1, 4, n_clusters), n_samples - n_clusters, True, generator=generator)
        labels = torch.cat([labels, more])
    moved = torch.rand(n_samples, generator=generator) < 0.25
    moved[:n_clusters] = False  # the first K samples keep every cluster non-empty
    text_labels = torch.where(moved, labels[torch.randperm(n_samples, generator=generator)], labels)
    groups = 3 * labels + torch.randint(3, (n_samples,), generator=generator)
    texts = 2 * groups + torch.randint(2, (n_samples,), generator=generator)
    order = torch.randperm(n_samples, generator=generator)
    image, image_features = _features_around(labels[order], n_clusters, dim, generator)
    text, text_features = _features_around(text_labels[order], n_clusters, dim, generator)
    similarity = centroid_similarity(image.centroids), centroid_similarity(text.centroids)
    return Clusters(image, text, *similarity, image_features, text_features, texts[order], groups[order])


def _features_around(labels: Tensor, k: int, dim: int, generator: torch.Generator) -> tuple[Clustering, Tensor]:
    centroids = F.normalize(torch.randn(k, dim, generator=generator), dim=1)
    noise = torch.randn(len(labels), dim, generator=generator) * 0.4 / dim**0.5
    return Clustering(labels, centroids), F.normalize(centroids[labels] + noise, dim=1)
