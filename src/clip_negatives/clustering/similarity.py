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
CELLS_AT_ONCE = 2**18  # cells of a table of all pairs that are read at a time
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
    """Return quantiles of the cluster similarity over all ordered pairs of different samples.

    The quantile q is the lowest similarity that at least a share q of the pairs does not exceed: a value of the table, found by
    counts of the upper and then of the lower 16 bits. Memory is O(K) besides the table.

    Args:
        similarity: similarity of the clusters, float32, shape (K, K).
        sizes: number of samples of each cluster, at least 2 in all, shape (K,).
        quantiles: 0 .. 1.

    Raises:
        InputError: a quantile is out of range, or there is no pair.

    Examples:
        >>> pair_quantiles(torch.tensor([[1.0, 0.25], [0.25, 1.0]]), torch.tensor([2, 1]), [0.5, 0.9])
        [0.25, 1.0]
    """
    for quantile in quantiles:
        check_number("quantile", quantile, at_least=0, at_most=1)
    if int(sizes.sum()) < 2:
        raise InputError("A quantile of pairs needs at least 2 samples. Use more data.")
    counts = _pairs_by_bits(similarity, sizes)
    up_to, values = counts.cumsum(0), []
    for quantile in quantiles:
        place = (quantile * up_to[-1]).clamp(min=1.0)  # the lowest pair is the quantile 0
        upper = int(torch.searchsorted(up_to, place))
        within = _pairs_by_bits(similarity, sizes, upper).cumsum(0)
        lower = int(torch.searchsorted(within, place - (up_to[upper] - counts[upper])))
        values.append(_value(upper << 16 | lower))
    return values


def _pairs_by_bits(similarity: Tensor, sizes: Tensor, upper: int | None = None) -> Tensor:
    """Return the number of pairs for each value of the upper 16 bits, or of the lower 16 bits of those with `upper`."""
    of_bits, first = torch.zeros(2**16, dtype=torch.float64), 0
    for rows in similarity.split(max(1, CELLS_AT_ONCE // len(similarity))):
        bits = _ordered_bits(rows)
        pairs = torch.outer(sizes[first : first + len(rows)].double(), sizes.double())
        pairs.diagonal(first).sub_(sizes[first : first + len(rows)])
        if upper is None:
            bits >>= 16
        else:
            chosen = bits >> 16 == upper
            bits, pairs = bits[chosen] & 0xFFFF, pairs[chosen]
        of_bits += bits.flatten().bincount(weights=pairs.flatten(), minlength=2**16)
        first += len(rows)
    return of_bits


def _ordered_bits(values: Tensor) -> Tensor:
    """Return the bits of float32 values as integers of the same order, int64, 0 .. 2^32 - 1."""
    bits = values.float().contiguous().view(torch.int32).long()
    return torch.where(bits < 0, ~bits, bits + 2**31)


def _value(ordered_bits: int) -> float:
    """Return the float32 value of `_ordered_bits`."""
    bits = ordered_bits - 2**31 if ordered_bits >= 2**31 else ~ordered_bits
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


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
