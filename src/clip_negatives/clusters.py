"""The clusters of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clip_negatives.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Clusters of one modality.

    Attributes:
        labels: cluster of each sample, int64, shape (N,), 0 .. K-1, no cluster empty; shape (0,) if the labels come with the
            samples of a stream.
        centroids: float32, shape (K, D), in the space of the features.
        counts: size of each cluster, int64, shape (K,), if there are no labels; else None.
    """

    labels: Tensor
    centroids: Tensor
    counts: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Return N."""
        return int(self.labels.shape[0]) if self.counts is None else int(self.counts.sum())

    @property
    def n_clusters(self) -> int:
        """Return K."""
        return int(self.centroids.shape[0])

    def sizes(self) -> Tensor:
        """Return the number of samples of each cluster, int64, shape (K,)."""
        return self.labels.bincount(minlength=self.n_clusters) if self.counts is None else self.counts


@dataclass(frozen=True, slots=True, eq=False)
class NearestClusters:
    """The most similar clusters of each cluster, used if a K x K table would be too large.

    Attributes:
        clusters: int32 or int64, shape (K, m): the cluster itself, then the others by falling similarity.
        cosines: cosine between the centroids, float32, shape (K, m), -1 .. 1; 1 in the first column.
        rest: mean cosine of all unlisted pairs of clusters.
    """

    clusters: Tensor
    cosines: Tensor
    rest: float


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Image and text clustering of one data set, and the similarity between clusters.

    Attributes:
        image: clustering of the N images.
        text: clustering of the N texts.
        image_similarity: cosine between image centroids, float32, shape (K_image, K_image), -1 .. 1, diagonal 1. Shape (0, 0)
            above `clip_negatives.clustering.similarity.DENSE_UP_TO` clusters, where `image_nearest` replaces it.
        text_similarity: the same between text centroids, shape (K_text, K_text).
        image_features: frozen unit-norm features, float32 or float16, shape (N, D_image), possibly memory-mapped; None if
            they were not kept.
        text_features: the same for the texts, shape (N, D_text).
        texts: id of the text of each sample, equal for equal texts, int64, shape (N,); None if the texts are unknown.
        groups: id of the item that each sample shows, int64, shape (N,); None if the data do not name items.
        image_nearest: nearest clusters of each image cluster, if there are too many for a table; else None.
        text_nearest: the same for the text clusters.
    """

    image: Clustering
    text: Clustering
    image_similarity: Tensor
    text_similarity: Tensor
    image_features: Tensor | None = None
    text_features: Tensor | None = None
    texts: Tensor | None = None
    groups: Tensor | None = None
    image_nearest: NearestClusters | None = None
    text_nearest: NearestClusters | None = None

    @property
    def n_samples(self) -> int:
        """Return N."""
        return self.image.n_samples

    @property
    def neighbours(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the nearest image clusters and the nearest text clusters, shape (K, m); None where there is a table."""
        image, text = (None if nearest is None else nearest.clusters for nearest in (self.image_nearest, self.text_nearest))
        return image, text

    def similarity_of(self, modality: str, needed_by: str) -> Tensor:
        """Return the similarity between all "image" or all "text" clusters, shape (K, K).

        Raises:
            InputError: there are too many clusters for a table. The message begins with `needed_by`.
        """
        table = self.image_similarity if modality == "image" else self.text_similarity
        if len(table) == 0:
            raise InputError(
                f"{needed_by} needs a table of all pairs of {modality} clusters, too large for {self.image.n_clusters} image "
                f"and {self.text.n_clusters} text clusters. Make fewer, for example with: "
                "clip-negatives prepare --clusterer kmeans:n_clusters=4096."
            )
        return table

    def features_of(self, modality: str, needed_by: str) -> Tensor:
        """Return the frozen features of the "image" or the "text", shape (N, D).

        Raises:
            InputError: the features were not kept. The message begins with `needed_by`.
        """
        features = self.image_features if modality == "image" else self.text_features
        if features is None and self.image.counts is not None:
            raise InputError(f"{needed_by} needs {modality} features, which a labels folder lacks. Use the clusters folder.")
        if features is None:
            raise InputError(
                f"{needed_by} needs {modality} features, which were not kept. Run clip-negatives prepare --keep-features."
            )
        return features
