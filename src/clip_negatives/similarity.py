"""How similar clusters are, and which exchanges of texts that makes reliable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering, Clusters


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
    clustering: Clustering, similarity: Tensor, *, threshold: float | None = None, quantile: float | None = None
) -> Tensor:
    """Say for every two clusters whether exchanging the texts of their samples gives a reliable incorrect pair.

    It does where the clusters differ and their similarity is under the threshold. With neither `threshold` nor `quantile`,
    it does wherever the clusters differ.

    Args:
        clustering: the clusters; their sizes weigh the quantile.
        similarity: cosine between its centroids, shape (K, K).
        threshold: cosine, -1 .. 1; pairs of clusters at or over it are not reliable.
        quantile: 0 .. 1; the threshold is the similarity under which this share of all pairs of samples lies.

    Returns:
        bool, shape (K, K), False on the diagonal.

    Raises:
        InputError: both are given, or one is out of its range.
    """
    if threshold is not None and quantile is not None:
        raise InputError(f"Expected a threshold or a quantile, got both (threshold={threshold}, quantile={quantile}).")
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise InputError(f"Expected a threshold within -1 .. 1 (a cosine), got {threshold}.")
    if quantile is not None:
        threshold = pair_quantile(similarity, clustering.sizes(), quantile)
    # "Under" is strict for a threshold that is given; a quantile of 1 means "all", so the largest one is let through.
    reliable = torch.ones_like(similarity, dtype=torch.bool) if threshold is None else similarity < threshold
    if quantile == 1.0:
        reliable = torch.ones_like(reliable)
    return reliable.fill_diagonal_(False)


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
        clusters.image_similarity,
        threshold=image_threshold,
        quantile=image_quantile if image_threshold is None else None,
    )
    text = reliable_table(
        clusters.text,
        clusters.text_similarity,
        threshold=text_threshold,
        quantile=text_quantile if text_threshold is None else None,
    )
    return image, text


def removed_share(clusters: Clusters, image_reliable: Tensor, text_reliable: Tensor) -> float:
    """Return the share of all ordered pairs of two different samples whose exchange is not reliable, 0 .. 1, exactly.

    Counted from the joint histogram of image and text clusters, in K_image x K_text memory, not from pairs.
    """
    n_image, n_text = clusters.image.n_clusters, clusters.text.n_clusters
    joint = (clusters.image.labels * n_text + clusters.text.labels).bincount(minlength=n_image * n_text)
    joint = joint.double().view(n_image, n_text)
    kept = (joint * (image_reliable.double() @ joint @ text_reliable.double().T)).sum()
    n = clusters.n_samples
    return 1.0 - float(kept) / max(n * (n - 1), 1)
