"""Rule that decides which clusters are too similar to exchange captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives.clustering.similarity import DENSE_UP_TO, pair_quantiles
from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clustering, Clusters, NearestClusters


@dataclass(frozen=True, slots=True)
class ReliabilityGate:
    """Rule that decides which incorrect pairs are reliable; a value out of range is an `InputError`.

    The pair (image i, text j) is reliable if the image clusters of i and j differ and their similarity is below the threshold.
    The text clusters must meet the same condition: ``image[a_i, a_j] & text[c_i, c_j]`` with the `tables` of the gate, image
    clusters a and text clusters c. Sign: pairs with high frozen similarity are unreliable.

    Attributes:
        image_threshold: two image clusters are too similar from this cosine on, -1 .. 1.
        image_quantile: the same threshold as a quantile of all pairs of samples, 0 .. 1; 0.95 makes the most similar 5 %
            unreliable. Used if `image_threshold` is None. At 1, or if both are None, image clusters only have to differ.
        text_threshold: the same as `image_threshold`, for text clusters.
        text_quantile: the same as `image_quantile`, for text clusters.

    Examples:
        >>> from clip_negatives.testing import make_blobs
        >>> image, text = ReliabilityGate(image_quantile=0.95, text_threshold=0.5).tables(make_blobs(n_clusters=12))
        >>> image.shape, bool(image.diagonal().any())
        (torch.Size([12, 12]), False)
    """

    image_threshold: float | None = None
    image_quantile: float | None = None
    text_threshold: float | None = None
    text_quantile: float | None = None

    def __post_init__(self) -> None:
        for name in ("image", "text"):
            check_number(f"{name}_threshold", getattr(self, f"{name}_threshold"), at_least=-1, at_most=1)
            check_number(f"{name}_quantile", getattr(self, f"{name}_quantile"), at_least=0, at_most=1)

    def tables(self, clusters: Clusters) -> tuple[Tensor, Tensor]:
        """Return `image_table` and `text_table`."""
        return self.image_table(clusters), self.text_table(clusters)

    def image_table(self, clusters: Clusters) -> Tensor:
        """Return which pairs of image clusters are dissimilar enough, bool, shape (K, K), with a diagonal of False.

        If the clusters list their nearest clusters, the table is sparse, shape (K, m + 1), as in
        `clip_negatives.losses.sparse_tables`; unlisted clusters are reliable. Too many clusters for a table: `InputError`.
        """
        limits = self.image_threshold, self.image_quantile
        return _table(clusters.image, clusters.image_similarity, clusters.image_nearest, *limits)

    def text_table(self, clusters: Clusters) -> Tensor:
        """Return the same as `image_table`, for text clusters."""
        limits = self.text_threshold, self.text_quantile
        return _table(clusters.text, clusters.text_similarity, clusters.text_nearest, *limits)


def _table(
    clustering: Clustering, dense: Tensor, nearest: NearestClusters | None, threshold: float | None, quantile: float | None
) -> Tensor:
    cosines = dense if nearest is None else nearest.cosines
    if nearest is None and len(cosines) != clustering.n_clusters:
        raise InputError(
            f"A table of all pairs of {clustering.n_clusters} clusters is too large (limit: {DENSE_UP_TO} clusters). "
            "Use cluster_similarity or weighted_infonce, or prepare with fewer clusters."
        )
    if threshold is None and quantile is not None and quantile < 1:
        sizes = clustering.sizes()
        threshold = _listed_quantile(nearest, sizes, quantile) if nearest else pair_quantiles(cosines, sizes, [quantile])[0]
    reliable = torch.ones_like(cosines, dtype=torch.bool) if threshold is None else cosines < threshold
    if nearest is None:
        return reliable.fill_diagonal_(False)
    reliable[:, 0] = False
    return torch.cat([reliable, torch.ones_like(reliable[:, :1])], dim=1)


def _listed_quantile(nearest: NearestClusters, sizes: Tensor, quantile: float) -> float:
    """Return the quantile over all pairs of different samples; not below the lowest listed cosine."""
    counts = sizes.double()
    pairs = counts[:, None] * counts[nearest.clusters.long()]
    pairs[:, 0] -= counts
    cosines, order = nearest.cosines.flatten().sort(descending=True)
    n = counts.sum()
    place = int(torch.searchsorted(pairs.flatten()[order].cumsum(0), (1.0 - quantile) * n * (n - 1)))
    return float(cosines[min(place, len(cosines) - 1)])
