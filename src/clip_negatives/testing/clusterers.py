"""What every clusterer must do."""

from __future__ import annotations

import pickle

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import ClipNegativesError
from clip_negatives.interfaces import Clustering
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.subject import Check, ConformanceError, Subject, expect, global_generators_kept, refused

N = 240
"""Samples of most checks."""


def there_is_a_label_for_each_sample(plugin: Subject) -> None:
    """Labels are int64, shape (N,), within 0 .. K-1."""
    clustering = fit(plugin, features())
    labels, k = clustering.labels, len(clustering.centroids)
    fits = labels.dtype == torch.int64 and labels.shape == (N,)
    expect(fits, f"Expected int64 labels of shape ({N},), got {labels.dtype} of shape {tuple(labels.shape)}.")
    found = int(labels.min()), int(labels.max())
    expect(0 <= found[0] <= found[1] < k, f"Expected labels within 0 .. {k - 1}, got {found[0]} .. {found[1]}.")


def no_cluster_is_empty(plugin: Subject) -> None:
    """Every centroid has a sample."""
    clustering = fit(plugin, features())
    missing = len(clustering.centroids) - len(clustering.labels.unique())
    expect(missing == 0, f"Expected a sample in every cluster, got {missing} clusters without.")


def centroids_lie_among_the_features(plugin: Subject) -> None:
    """Centroids are finite float32, shape (K, D), in the space of the features."""
    given = features()
    centroids = fit(plugin, given).centroids
    fits = centroids.dtype == torch.float32 and centroids.ndim == 2 and centroids.shape[1] == given.shape[1]
    told = f"{centroids.dtype} of shape {tuple(centroids.shape)}"
    expect(fits, f"Expected float32 centroids of shape (K, {given.shape[1]}), got {told}.")
    expect(bool(centroids.isfinite().all()), "Expected finite centroids, got NaN or infinity.")


def similar_samples_share_a_cluster(plugin: Subject) -> None:
    """Two samples of a cluster are more similar, on average, than two of all."""
    given = features()
    labels = fit(plugin, given).labels
    similarity = given @ given.T
    together = (labels[:, None] == labels) & ~torch.eye(N, dtype=torch.bool)
    expect(bool(together.any()), f"Expected clusters of several samples, got {len(labels.unique())} clusters of one each.")
    within, overall = float(similarity[together].mean()), float(similarity.mean())
    expect(within > overall + 0.1, f"Expected similarity within clusters over {overall:.2f}, that of all, got {within:.2f}.")


def the_same_generator_gives_the_same_clusters(plugin: Subject) -> None:
    """All randomness comes from the generator that `fit` is given."""
    one, other = fit(plugin, features()), fit(plugin, features())
    same = torch.equal(one.labels, other.labels) and torch.equal(one.centroids, other.centroids)
    expect(same, "Expected the same clusters from the same generator, got others.")


def global_generators_are_untouched(plugin: Subject) -> None:
    """Nothing is drawn from the global generators of torch, NumPy or Python."""
    with global_generators_kept():
        fit(plugin, features())


def features_are_left_as_they_are(plugin: Subject) -> None:
    """The features that it is handed are not written to: they may be a file that is mapped into memory."""
    given, before = features(), features()
    fit(plugin, given)
    expect(torch.equal(given, before), "Expected features that are only read, got changed ones.")


def half_precision_is_taken(plugin: Subject) -> None:
    """Features of float16, as they may be kept, are clustered into float32 centroids."""
    clustering = fit(plugin, features().half())
    expect(len(clustering.labels) == N, f"Expected {N} labels of float16 features, got {len(clustering.labels)}.")


def strides_do_not_matter(plugin: Subject) -> None:
    """Features that do not lie one after the other in memory give the same clusters."""
    by_column = features().T.contiguous().T
    same = torch.equal(fit(plugin, by_column).labels, fit(plugin, features()).labels)
    expect(same, "Expected the clusters of the same numbers, wherever they lie, got others.")


def what_is_not_finite_is_refused(plugin: Subject) -> None:
    """NaN or infinity among the features is an error of clip_negatives.errors, not a cluster."""
    for value in (float("nan"), float("inf")):
        given = features()
        given[7, 1] = value
        with refused(f"features with {value}"):
            fit(plugin, given)


def another_shape_is_refused(plugin: Subject) -> None:
    """Features that are not of shape (N, D), N and D over 0, are an error of clip_negatives.errors."""
    for shape in ((N,), (0, 16)):
        with refused(f"features of shape {shape}"):
            fit(plugin, torch.zeros(shape))


def few_samples_are_clustered_or_refused(plugin: Subject) -> None:
    """One to five samples are clustered, or are an error of clip_negatives.errors."""
    for n in (1, 2, 5):
        _sound_or_refused(plugin, features()[:n].clone(), f"{n} samples")


def equal_samples_are_clustered_or_refused(plugin: Subject) -> None:
    """Samples that are all alike are clustered without an empty cluster, or are an error of clip_negatives.errors."""
    _sound_or_refused(plugin, F.normalize(torch.ones(N, 16), dim=1), f"{N} equal samples")


def pickles(plugin: Subject) -> None:
    """It can be pickled, as processes are started with it, and the copy finds the same clusters."""
    copy = pickle.loads(pickle.dumps(plugin.create()))  # noqa: S301  (our own)
    same = torch.equal(copy.fit(features(), generator=epoch_generator(0, 0)).labels, fit(plugin, features()).labels)
    expect(same, "Expected the same clusters from a copy, got others.")


def features() -> Tensor:
    """Return unit-norm features in blobs, float32, shape (N, 16)."""
    return make_blobs(N).features_of("image", "the checks")


def fit(plugin: Subject, given: Tensor) -> Clustering:
    """Cluster with a clusterer and a generator made afresh."""
    clustering: Clustering = plugin.create().fit(given, generator=epoch_generator(0, 0))
    return clustering


def _sound_or_refused(plugin: Subject, given: Tensor, what: str) -> None:
    try:
        clustering = fit(plugin, given)
    except ClipNegativesError:
        return
    except Exception as error:
        raise ConformanceError(f"Expected clusters of {what}, or a sentence, got {type(error).__name__}: {error}") from error
    sound = clustering.labels.shape == (len(given),) and len(clustering.labels.unique()) == len(clustering.centroids)
    expect(sound, f"Expected a label for each of {what} and no empty cluster, or a sentence, got neither.")


CHECKS: tuple[Check, ...] = (
    there_is_a_label_for_each_sample,
    no_cluster_is_empty,
    centroids_lie_among_the_features,
    similar_samples_share_a_cluster,
    the_same_generator_gives_the_same_clusters,
    global_generators_are_untouched,
    features_are_left_as_they_are,
    half_precision_is_taken,
    strides_do_not_matter,
    what_is_not_finite_is_refused,
    another_shape_is_refused,
    few_samples_are_clustered_or_refused,
    equal_samples_are_clustered_or_refused,
    pickles,
)
