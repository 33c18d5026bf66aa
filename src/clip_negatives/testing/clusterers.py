"""Checks of clusterers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.interfaces import Clusterer, Clustering
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.subject import Checks, expect, expect_tensor, may_reject, must_reject

N = 240  # samples of most checks


class ClustererChecks(Checks):
    """Checks of a clusterer."""

    def every_sample_has_a_label(self) -> None:
        """Labels are int64, shape (N,), within 0 .. K-1."""
        clustering = self._fit()
        expect_tensor("Clustering.labels", clustering.labels, torch.int64, (N,), len(clustering.centroids))

    def no_cluster_is_empty(self) -> None:
        """Every cluster has a sample."""
        _expect_no_empty_cluster(self._fit())

    def centroids_fit_the_features(self) -> None:
        """Centroids are finite float32, shape (K, D), in the space of the features."""
        centroids = self._fit().centroids
        expect_tensor("Clustering.centroids", centroids, torch.float32, (*centroids.shape[:1], _features().shape[1]))
        expect(bool(centroids.isfinite().all()), "Centroids hold NaN or infinity. Look for a division by an empty cluster.")

    def similar_samples_share_a_cluster(self) -> None:
        """Samples of one cluster are more similar, on average, than samples of the whole data set."""
        labels, similarity = self._fit().labels, _features() @ _features().T
        together = (labels[:, None] == labels) & ~torch.eye(N, dtype=torch.bool)
        expect(bool(together.any()), f"Each of {N} samples is alone in its cluster. Make fewer clusters.")
        within, overall = float(similarity[together].mean()), float(similarity.mean())
        message = f"Mean similarity is {within:.2f} in clusters, {overall:.2f} overall. Assign samples to similar centroids."
        expect(within > overall + 0.1, message)

    def same_generator_gives_the_same_clusters(self) -> None:
        """All random numbers come from the argument ``generator`` of ``fit``."""
        first, second = self._fit(), self._fit()
        same = torch.equal(first.labels, second.labels) and torch.equal(first.centroids, second.centroids)
        expect(same, "The same generator gives different clusters. Draw everything from the generator of fit.")

    def features_are_not_modified(self) -> None:
        """``fit`` does not write to the features, which may be a memory-mapped file."""
        features = _features()
        self._fit(features)
        expect(torch.equal(features, _features()), "fit changes the features in place. Change a copy: features.clone().")

    def float16_is_accepted(self) -> None:
        """Features of float16 are clustered too, with float32 centroids."""
        n = len(self._fit(_features().half()).labels)
        expect(n == N, f"{N} float16 samples have {n} labels. Convert with .float().")

    def strides_do_not_matter(self) -> None:
        """Features that are not contiguous in memory give the same clusters."""
        by_column = _features().T.contiguous().T
        same = torch.equal(self._fit(by_column).labels, self._fit().labels)
        expect(same, "Features with other strides give different clusters. Call features.contiguous() first.")

    def non_finite_features_are_rejected(self) -> None:
        """NaN or infinity in the features is an error of clip_negatives.errors."""
        for value in (float("nan"), float("inf")):
            features = _features()
            features[7, 1] = value
            with must_reject(f"features with {value}"):
                self._fit(features)

    def wrong_shapes_are_rejected(self) -> None:
        """Features must have shape (N, D) with N, D > 0; other shapes are an error of clip_negatives.errors."""
        for shape in ((N,), (0, 16)):
            with must_reject(f"features of shape {shape}"):
                self._fit(torch.zeros(shape))

    def few_samples_are_clustered_or_rejected(self) -> None:
        """One to five samples are clustered, or are an error of clip_negatives.errors."""
        for n in (1, 2, 5):
            self._cluster_or_reject(_features()[:n].clone(), f"{n} samples")

    def equal_samples_are_clustered_or_rejected(self) -> None:
        """Equal samples are clustered without an empty cluster, or are an error of clip_negatives.errors."""
        self._cluster_or_reject(F.normalize(torch.ones(N, 16), dim=1), f"{N} equal samples")

    def _use(self, instance: Clusterer) -> Any:
        return instance.fit(_features(), generator=epoch_generator(0, 0)).labels.tolist()

    def _fit(self, features: Tensor | None = None) -> Clustering:
        clusterer: Clusterer = self._instance()
        return clusterer.fit(_features() if features is None else features, generator=epoch_generator(0, 0))

    def _cluster_or_reject(self, features: Tensor, case: str) -> None:
        with may_reject(case):
            clustering = self._fit(features)
            n = len(clustering.labels)
            expect(n == len(features), f"With {case}, there are {n} labels. Return one per sample, or raise an InputError.")
            _expect_no_empty_cluster(clustering, f"With {case}, ")


def _features() -> Tensor:
    return make_blobs(N).features_of("image", "the checks")


def _expect_no_empty_cluster(clustering: Clustering, case: str = "") -> None:
    empty = len(clustering.centroids) - len(clustering.labels.unique())
    expect(empty == 0, f"{case}{empty} clusters have no sample. Drop their centroids and renumber the labels.")
