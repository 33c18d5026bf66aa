"""Broken clusterers, by the one check that must fail."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering


class Sound:
    """A correct clusterer: centroids are a few random samples."""

    k = 8

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        self.check(features)
        distinct = features.float().unique(dim=0)
        drawn = torch.randperm(len(distinct), generator=generator)[: self.k]
        centroids = distinct[drawn]
        nearest = (features.float() @ centroids.mT).argmax(1)
        used, labels = nearest.unique(return_inverse=True)
        return Clustering(labels, centroids[used])

    def check(self, features: Tensor) -> None:
        if features.ndim != 2 or 0 in features.shape or not bool(features.isfinite().all()):
            raise InputError("features must be finite and of shape (N, D).")


class NumbersFromOne(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        clustering = super().fit(features, generator=generator)
        return Clustering(clustering.labels.int().long().where(clustering.labels != 0, -1), clustering.centroids)


class LeavesOneEmpty(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        clustering = super().fit(features, generator=generator)
        if len(features) <= 5 or len(clustering.centroids) == 1:
            return clustering
        return Clustering(clustering.labels, torch.cat([clustering.centroids, clustering.centroids[:1]]))


class InDoublePrecision(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        clustering = super().fit(features, generator=generator)
        return Clustering(clustering.labels, clustering.centroids.double())


class AtRandom(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        clustering = super().fit(features, generator=generator)
        return Clustering(clustering.labels[torch.randperm(len(features), generator=generator)], clustering.centroids)


class SeedsItselfAnew(Sound):
    fitted = 0

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        SeedsItselfAnew.fitted += 1
        clustering = super().fit(features, generator=generator)
        return Clustering(clustering.labels, clustering.centroids + 1e-3 * self.fitted)


class DrawsGlobally(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        torch.rand(1)
        return super().fit(features, generator=generator)


class WritesToTheFeatures(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        clustering = super().fit(features, generator=generator)
        features.mul_(2)
        return clustering


class FloatOnly(Sound):
    def check(self, features: Tensor) -> None:
        super().check(features)
        if features.dtype != torch.float32:
            raise TypeError("float32 only")


class ReadsTheStorage(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        self.check(features)
        return super().fit(features.view(-1).view(features.shape), generator=generator)


class TakesNan(Sound):
    def check(self, features: Tensor) -> None:
        if features.ndim != 2 or 0 in features.shape:
            raise InputError("features must be of shape (N, D).")


class TakesAnyShape(Sound):
    def check(self, features: Tensor) -> None:
        if not bool(features.isfinite().all()):
            raise InputError("features must be finite.")


class NeedsMany(Sound):
    def check(self, features: Tensor) -> None:
        super().check(features)
        if len(features) < self.k:
            raise ValueError("too few")


class NeedsDifferentOnes(Sound):
    def check(self, features: Tensor) -> None:
        super().check(features)
        if len(features) > 5 and len(features.unique(dim=0)) == 1:
            raise ZeroDivisionError("no spread")


class HoldsALambda(Sound):
    def __init__(self) -> None:
        self.distance = lambda a, b: 1 - F.cosine_similarity(a, b)


BROKEN = {
    "global_generators_are_untouched": DrawsGlobally,
    "pickles": HoldsALambda,
    "every_sample_has_a_label": NumbersFromOne,
    "no_cluster_is_empty": LeavesOneEmpty,
    "centroids_fit_the_features": InDoublePrecision,
    "similar_samples_share_a_cluster": AtRandom,
    "same_generator_gives_the_same_clusters": SeedsItselfAnew,
    "features_are_not_modified": WritesToTheFeatures,
    "float16_is_accepted": FloatOnly,
    "strides_do_not_matter": ReadsTheStorage,
    "non_finite_features_are_rejected": TakesNan,
    "wrong_shapes_are_rejected": TakesAnyShape,
    "few_samples_are_clustered_or_rejected": NeedsMany,
    "equal_samples_are_clustered_or_rejected": NeedsDifferentOnes,
}
SOUND = (Sound,)
