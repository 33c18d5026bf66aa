"""Similarity between clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.neighbours import nearest_clusters
from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clustering, Clusters, NearestClusters

DENSE_UP_TO = 16_384  # largest K with a table of all pairs (1 GiB); above, each cluster lists its nearest clusters
LISTED = 64  # clusters in each list, with the cluster itself; our choice


def centroid_similarity(centroids: Tensor) -> Tensor:
    """Return the cosine between every two centroids, float32, shape (K, K), of `centroids`, float, shape (K, D).

    Equals ``F.normalize(c, dim=1) @ F.normalize(c, dim=1).T`` in float32, clamped to -1 .. 1, with a diagonal of exactly 1.

    Examples:
        >>> centroid_similarity(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    unit = F.normalize(centroids.float(), dim=1)
    return (unit @ unit.T).clamp_(-1.0, 1.0).fill_diagonal_(1.0)


def similarities(image: Clustering, text: Clustering) -> dict[str, Any]:
    """Return the similarities of image and text clusters, tables or lists, as keyword arguments of `Clusters`."""
    arguments: dict[str, Any] = {}
    for name, clustering in (("image", image), ("text", text)):
        if clustering.n_clusters <= DENSE_UP_TO:
            arguments[f"{name}_similarity"] = centroid_similarity(clustering.centroids)
        else:
            arguments[f"{name}_similarity"] = torch.empty(0, 0)
            arguments[f"{name}_nearest"] = nearest_similarity(clustering.centroids, LISTED)
    return arguments


def nearest_similarity(centroids: Tensor, listed: int) -> NearestClusters:
    """Return the `listed` (2 .. K) most similar clusters of each cluster, with itself, and the mean of all other pairs."""
    neighbours, cosines = nearest_clusters(centroids, listed - 1)
    k = len(centroids)
    own = torch.arange(k, dtype=neighbours.dtype)[:, None]
    # The sum over all pairs is the squared length of the sum of the unit vectors.
    total = float(F.normalize(centroids.double(), dim=1).sum(dim=0).square().sum())
    listed_total = k + float(cosines.sum(dtype=torch.float64))
    rest = (total - listed_total) / max(1, k * k - k * listed)
    return NearestClusters(torch.cat([own, neighbours], dim=1), torch.cat([torch.ones(k, 1), cosines], dim=1), rest)


def pair_similarity(clustering: Clustering, left: Tensor, right: Tensor) -> Tensor:
    """Return the cosine between the clusters of samples `left` and `right`, both (M,); exactly 1 within a cluster."""
    a, b = clustering.labels[left], clustering.labels[right]
    cosines = F.cosine_similarity(clustering.centroids[a].float(), clustering.centroids[b].float(), dim=1)
    return cosines.clamp(-1.0, 1.0).masked_fill(a == b, 1.0)


def pair_quantiles(similarity: Tensor, sizes: Tensor, quantiles: Sequence[float]) -> list[float]:
    """Return quantiles of the cluster similarity (K, K) over all pairs of samples; `sizes`, (K,), are cluster sizes."""
    for quantile in quantiles:
        check_number("quantile", quantile, at_least=0, at_most=1)
    weight = pair_counts(sizes).flatten()
    order = similarity.flatten().argsort()
    below = weight[order].cumsum(0)
    places = torch.searchsorted(below, torch.tensor(quantiles, dtype=below.dtype) * below[-1]).clamp(max=order.numel() - 1)
    return list(similarity.flatten()[order[places]].tolist())


def pair_counts(sizes: Tensor) -> Tensor:
    """Return the number of ordered pairs of different samples for each pair of clusters, float64, shape (K, K)."""
    counts = sizes.double()
    return torch.outer(counts, counts) - torch.diag(counts)


def removed_share(clusters: Clusters, image_reliable: Tensor, text_reliable: Tensor) -> float:
    """Return the exact share, 0 .. 1, of ordered pairs of samples that the tables mark as unreliable.

    Raises:
        InputError: the labels come from a stream, or there are more than `DENSE_UP_TO` clusters.
    """
    streamed = clusters.image.counts is not None
    if streamed or clusters.image_nearest or clusters.text_nearest:
        fault = "labels that come with a stream" if streamed else f"more than {DENSE_UP_TO} clusters"
        hint = "Use weighted_infonce, or a clusters folder with fewer clusters."
        raise InputError(f"The share of removed pairs cannot be counted with {fault}. {hint}")
    n_image, n_text = clusters.image.n_clusters, clusters.text.n_clusters
    cells = clusters.image.labels * n_text + clusters.text.labels
    joint = cells.bincount(minlength=n_image * n_text).double().view(n_image, n_text)
    kept = (joint * (image_reliable.double() @ joint @ text_reliable.double().T)).sum()
    n = clusters.n_samples
    return 1.0 - float(kept) / max(n * (n - 1), 1)
