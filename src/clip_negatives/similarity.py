"""How similar clusters are, and which exchanges of texts that makes reliable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering, Clusters, Nearest
from clip_negatives.neighbours import nearest_clusters

DENSE_UP_TO = 16_384
"""Clusters of which a table of all is held, 1 GiB; of more, each lists its nearest."""

LISTED = 64
"""Clusters that each of very many lists, itself among them: our choice."""


def centroid_similarity(centroids: Tensor) -> Tensor:
    """Compute the cosine between every two centroids.

    Equals ``F.normalize(c, dim=1) @ F.normalize(c, dim=1).T`` in float32, clamped to -1 .. 1, with a diagonal of exactly 1.

    Args:
        centroids: float, shape (K, D).

    Returns:
        float32, shape (K, K), symmetric.

    Examples:
        >>> centroid_similarity(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    unit = F.normalize(centroids.float(), dim=1)
    return (unit @ unit.T).clamp_(-1.0, 1.0).fill_diagonal_(1.0)


def similarities(image: Clustering, text: Clustering) -> dict[str, Any]:
    """Return how similar the clusters of each modality are, as `Clusters` takes it: tables, or lists of the nearest."""
    found: dict[str, Any] = {}
    for name, clustering in (("image", image), ("text", text)):
        if clustering.n_clusters <= DENSE_UP_TO:
            found[f"{name}_similarity"] = centroid_similarity(clustering.centroids)
        else:
            found[f"{name}_similarity"] = torch.empty(0, 0)
            found[f"{name}_nearest"] = nearest_similarity(clustering.centroids, LISTED)
    return found


def nearest_similarity(centroids: Tensor, listed: int) -> Nearest:
    """Return the clusters that are most similar to each, and the mean similarity to the others.

    Args:
        centroids: float, shape (K, D).
        listed: m, 2 .. K.
    """
    others, cosines = nearest_clusters(centroids, listed - 1)
    k = len(centroids)
    own = torch.arange(k, dtype=others.dtype)[:, None]
    # The sum over all pairs is the squared length of the sum of the unit vectors.
    of_all = float(F.normalize(centroids.double(), dim=1).sum(dim=0).square().sum())
    in_lists = k + float(cosines.sum(dtype=torch.float64))
    rest = (of_all - in_lists) / max(1, k * k - k * listed)
    return Nearest(torch.cat([own, others], dim=1), torch.cat([torch.ones(k, 1), cosines], dim=1), rest)


def pair_similarity(clustering: Clustering, left: Tensor, right: Tensor) -> Tensor:
    """Return the cosine between the centroids of the clusters of samples, however many clusters there are.

    Args:
        clustering: the clusters.
        left: samples, int64, shape (M,).
        right: samples, int64, shape (M,).

    Returns:
        float32, shape (M,), -1 .. 1, exactly 1 within a cluster.
    """
    a, b = clustering.labels[left], clustering.labels[right]
    cosines = F.cosine_similarity(clustering.centroids[a].float(), clustering.centroids[b].float(), dim=1)
    return cosines.clamp(-1.0, 1.0).masked_fill(a == b, 1.0)


def pair_quantile(similarity: Tensor, sizes: Tensor, quantile: float) -> float:
    """Return the cluster similarity under which the share `quantile` of all pairs of samples lies.

    Each entry of the table counts as often as there are pairs of two different samples in those two clusters, so the answer
    is about pairs that a batch holds, not about clusters.

    Args:
        similarity: float32, shape (K, K).
        sizes: samples of each cluster, shape (K,).
        quantile: 0 .. 1.

    Raises:
        InputError: `quantile` is not within 0 .. 1.
    """
    return pair_quantiles(similarity, sizes, [quantile])[0]


def pair_quantiles(similarity: Tensor, sizes: Tensor, quantiles: Sequence[float]) -> list[float]:
    """Return `pair_quantile` of each of `quantiles`; the table is sorted once.

    Raises:
        InputError: a quantile is not within 0 .. 1.
    """
    for quantile in quantiles:
        if not 0.0 <= quantile <= 1.0:
            raise InputError(f"Expected a quantile within 0 .. 1, got {quantile}.")
    weight = pair_counts(sizes).flatten()
    order = similarity.flatten().argsort()
    below = weight[order].cumsum(0)
    places = torch.searchsorted(below, torch.tensor(quantiles, dtype=below.dtype) * below[-1]).clamp(max=order.numel() - 1)
    found: list[float] = similarity.flatten()[order[places]].tolist()
    return found


def pair_counts(sizes: Tensor) -> Tensor:
    """Return how many ordered pairs of two different samples each two clusters hold, float64, shape (K, K)."""
    counts = sizes.double()
    return torch.outer(counts, counts) - torch.diag(counts)


def reliable_table(
    clustering: Clustering, similarity: Tensor | Nearest, *, threshold: float | None = None, quantile: float | None = None
) -> Tensor:
    """Say for every two clusters whether exchanging the texts of their samples gives a reliable incorrect pair.

    It does where the clusters differ and their similarity is under the threshold. With neither `threshold` nor `quantile`,
    it does wherever the clusters differ.

    Args:
        clustering: the clusters; their sizes weigh the quantile.
        similarity: cosine between its centroids, shape (K, K); of a clustering with more than `DENSE_UP_TO` clusters the lists
            of the nearest.
        threshold: cosine, -1 .. 1; pairs of clusters at or over it are not reliable.
        quantile: 0 .. 1; the threshold is the similarity under which this share of all pairs of samples lies.

    Returns:
        bool, shape (K, K), False on the diagonal; of lists a table of listed clusters, shape (K, m + 1), as
        `clip_negatives.listed` has them. What is not listed is reliable there, so a quantile removes at most what is listed.

    Raises:
        InputError: both are given, or one is out of its range.
    """
    if threshold is not None and quantile is not None:
        raise InputError(f"Expected a threshold or a quantile, got both (threshold={threshold}, quantile={quantile}).")
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise InputError(f"Expected a threshold within -1 .. 1 (a cosine), got {threshold}.")
    if isinstance(similarity, Nearest):
        return _reliable_listed(clustering, similarity, threshold, quantile)
    if similarity.shape[0] != clustering.n_clusters:
        raise InputError(
            f"Expected a table of similarities for {clustering.n_clusters} clusters, got none, as they are more than "
            f"{DENSE_UP_TO}. Use cluster_similarity and weighted_infonce, or fewer clusters."
        )
    if quantile is not None:
        threshold = pair_quantile(similarity, clustering.sizes(), quantile)
    # "Under" is strict for a threshold that is given; a quantile of 1 means "all", so the largest one is let through.
    reliable = torch.ones_like(similarity, dtype=torch.bool) if threshold is None else similarity < threshold
    if quantile == 1.0:
        reliable = torch.ones_like(reliable)
    return reliable.fill_diagonal_(False)


def _reliable_listed(clustering: Clustering, nearest: Nearest, threshold: float | None, quantile: float | None) -> Tensor:
    """Do what `reliable_table` does with lists of the nearest."""
    listed = torch.ones_like(nearest.cosines, dtype=torch.bool)
    if quantile is not None and not 0.0 <= quantile <= 1.0:
        raise InputError(f"Expected a quantile within 0 .. 1, got {quantile}.")
    if quantile is not None and quantile < 1.0:
        sizes = clustering.sizes().double()
        pairs = sizes[:, None] * sizes[nearest.clusters.long()]
        pairs[:, 0] -= sizes
        order = nearest.cosines.flatten().argsort(descending=True)
        over = pairs.flatten()[order].cumsum(0)
        n = sizes.sum()
        place = int(torch.searchsorted(over, (1.0 - quantile) * n * (n - 1))) + 1
        threshold = float(nearest.cosines.flatten()[order[min(place, order.numel()) - 1]])
    if threshold is not None:
        listed = nearest.cosines < threshold
    listed[:, 0] = False
    return torch.cat([listed, torch.ones_like(listed[:, :1])], dim=1)


def reliable_tables(
    clusters: Clusters,
    *,
    image_threshold: float | None = None,
    image_quantile: float | None = None,
    text_threshold: float | None = None,
    text_quantile: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `reliable_table` of the image clusters and of the text clusters; a threshold goes before a quantile.

    The exchange of the texts of samples i and j is reliable where both tables allow it:
    ``image[a_i, a_j] & text[c_i, c_j]`` with the image clusters a and the text clusters c.
    """
    image = reliable_table(
        clusters.image,
        clusters.image_nearest or clusters.image_similarity,
        threshold=image_threshold,
        quantile=image_quantile if image_threshold is None else None,
    )
    text = reliable_table(
        clusters.text,
        clusters.text_nearest or clusters.text_similarity,
        threshold=text_threshold,
        quantile=text_quantile if text_threshold is None else None,
    )
    return image, text


def removed_share(clusters: Clusters, image_reliable: Tensor, text_reliable: Tensor) -> float:
    """Return the share of all ordered pairs of two different samples whose exchange is not reliable, 0 .. 1, exactly.

    Counted from the joint histogram of image and text clusters, in K_image x K_text memory, not from pairs.

    Raises:
        InputError: the samples have no labels, or the clusters are so many that they list their nearest.
    """
    if clusters.image.counts is not None or clusters.image_nearest is not None or clusters.text_nearest is not None:
        fault = "labels that come with a stream" if clusters.image.counts is not None else f"more than {DENSE_UP_TO} clusters"
        raise InputError(
            f"Expected a clusters folder of at most {DENSE_UP_TO} clusters, to count what is removed, got {fault}. "
            "Use weighted_infonce, or prepare with fewer clusters."
        )
    n_image, n_text = clusters.image.n_clusters, clusters.text.n_clusters
    joint = (clusters.image.labels * n_text + clusters.text.labels).bincount(minlength=n_image * n_text)
    joint = joint.double().view(n_image, n_text)
    kept = (joint * (image_reliable.double() @ joint @ text_reliable.double().T)).sum()
    n = clusters.n_samples
    return 1.0 - float(kept) / max(n * (n - 1), 1)
