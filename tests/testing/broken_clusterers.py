"""Clusterers each of which does one thing wrong, by the check that must find it, and no other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clustering


class Sound:
    """Assign to the nearest of a few samples; nothing is wrong with it."""

    k = 8

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        self.check(features)
        distinct = features.float().unique(dim=0)
        some = torch.randperm(len(distinct), generator=generator)[: self.k]
        centroids = distinct[some]
        nearest = (features.float() @ centroids.mT).argmax(1)
        used, labels = nearest.unique(return_inverse=True)
        return Clustering(labels, centroids[used])

    def check(self, features: Tensor) -> None:
        if features.ndim != 2 or 0 in features.shape or not bool(features.isfinite().all()):
            raise InputError("Expected finite features of shape (N, D), got others.")


class NumbersFromOne(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        found = super().fit(features, generator=generator)
        return Clustering(found.labels.int().long().where(found.labels != 0, -1), found.centroids)


class LeavesOneEmpty(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        found = super().fit(features, generator=generator)
        if len(features) <= 5 or len(found.centroids) == 1:
            return found
        return Clustering(found.labels, torch.cat([found.centroids, found.centroids[:1]]))


class InDoublePrecision(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        found = super().fit(features, generator=generator)
        return Clustering(found.labels, found.centroids.double())


class AtRandom(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        found = super().fit(features, generator=generator)
        return Clustering(found.labels[torch.randperm(len(features), generator=generator)], found.centroids)


class SeedsItselfAnew(Sound):
    fitted = 0

    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        SeedsItselfAnew.fitted += 1
        found = super().fit(features, generator=generator)
        return Clustering(found.labels, found.centroids + 1e-3 * self.fitted)


class DrawsGlobally(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        torch.rand(1)
        return super().fit(features, generator=generator)


class WritesToTheFeatures(Sound):
    def fit(self, features: Tensor, *, generator: torch.Generator) -> Clustering:
        found = super().fit(features, generator=generator)
        features.mul_(2)
        return found


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
            raise InputError("Expected features of shape (N, D), got others.")


class TakesAnyShape(Sound):
    def check(self, features: Tensor) -> None:
        if not bool(features.isfinite().all()):
            raise InputError("Expected finite features, got others.")


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
    "there_is_a_label_for_each_sample": NumbersFromOne,
    "no_cluster_is_empty": LeavesOneEmpty,
    "centroids_lie_among_the_features": InDoublePrecision,
    "similar_samples_share_a_cluster": AtRandom,
    "the_same_generator_gives_the_same_clusters": SeedsItselfAnew,
    "global_generators_are_untouched": DrawsGlobally,
    "features_are_left_as_they_are": WritesToTheFeatures,
    "half_precision_is_taken": FloatOnly,
    "strides_do_not_matter": ReadsTheStorage,
    "what_is_not_finite_is_refused": TakesNan,
    "another_shape_is_refused": TakesAnyShape,
    "few_samples_are_clustered_or_refused": NeedsMany,
    "equal_samples_are_clustered_or_refused": NeedsDifferentOnes,
    "pickles": HoldsALambda,
}
SOUND = (Sound,)
