"""What other thresholds and other numbers of clusters would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_negatives import registry
from clip_negatives.artifacts import ClustersFolder
from clip_negatives.errors import PluginError
from clip_negatives.interfaces import Clusters
from clip_negatives.options import parse_spec
from clip_negatives.refresh import cluster_features
from clip_negatives.report.inspection.sampled import false_pairs
from clip_negatives.report.inspection.setting import QUANTILE
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import pair_counts, pair_quantiles, reliable_tables, removed_share

QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Shares of all pairs under the threshold; 1 removes pairs of one cluster only."""

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the number of clusters that are tried."""

SUBSAMPLE = 8000
"""Samples that are clustered anew at most."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Say what it would do to remove the pairs that are too similar.

    Attributes:
        quantile: share of all pairs under each threshold.
        image: cosine of image clusters that it is.
        text: cosine of text clusters.
        removed: share of all pairs that is removed, 0 .. 1.
        caught: share of the false negatives that is; None where the data have none.
        lost: share of the other pairs that is; None likewise.
    """

    quantile: float
    image: float
    text: float
    removed: float
    caught: float | None
    lost: float | None


@dataclass(frozen=True, slots=True)
class Granularity:
    """Say what another number of clusters would do, each a pair of figures: image clusters, text clusters.

    Attributes:
        n_clusters: K.
        median_size: samples of a cluster, of the sub-sample.
        largest: samples of the largest.
        silhouette: mean silhouette by cosine, -1 .. 1.
        same_cluster: share of all pairs that is in one cluster, 0 .. 1.
        gate: of `QUANTILE`.
    """

    n_clusters: tuple[int, int]
    median_size: tuple[float, float]
    largest: tuple[int, int]
    silhouette: tuple[float | None, float | None]
    same_cluster: tuple[float, float]
    gate: Gate


def gates(clusters: Clusters, truth: Tensor, seed: int) -> list[Gate]:
    """Return what each of `QUANTILES` would do."""
    false = false_pairs(truth, seed)
    return _gates(clusters, QUANTILES, false, _false_share(truth))


def granularities(folder: ClustersFolder, truth: Tensor, seed: int) -> tuple[list[Granularity], str]:
    """Cluster a sub-sample anew with other numbers of clusters.

    Returns:
        What each would do, and, where there is none, why.
    """
    clusters = folder.clusters
    if clusters.image_features is None or clusters.text_features is None:
        return [], "The features were not kept in the folder, so nothing can be clustered anew: prepare it with features kept."
    some = torch.randperm(clusters.n_samples, generator=epoch_generator(seed, 3))[:SUBSAMPLE].sort().values
    features = clusters.image_features[some].float(), clusters.text_features[some].float()
    false, share = false_pairs(truth[some], seed), _false_share(truth[some])
    distances = [(1.0 - part @ part.T).clamp_(min=0.0).fill_diagonal_(0.0) for part in features]
    specs = [str(folder.manifest.get(name, "kmeans")) for name in ("clusterer", "text_clusterer")]
    found = []
    for factor in FACTORS:
        wanted = [max(2, round(factor * part.n_clusters)) for part in (clusters.image, clusters.text)]
        if max(wanted) > len(some) // 4:
            continue
        try:
            chosen = [_with_clusters(spec, n) for spec, n in zip(specs, wanted, strict=True)]
            fitted = cluster_features(*features, clusterer=chosen[0], text_clusterer=chosen[1], seed=seed)
        except PluginError as error:
            return [], f"The clusterer cannot be asked for another number of clusters. {error}"
        found.append(_granularity(fitted, distances, _gates(fitted, [QUANTILE], false, share)[0]))
    return found, "" if found else "There are too few samples for other numbers of clusters."


def _granularity(clusters: Clusters, distances: list[Tensor], gate: Gate) -> Granularity:
    both = clusters.image, clusters.text
    sizes = [part.sizes() for part in both]
    image, text = (float((part.double() * (part - 1)).sum() / pair_counts(part).sum()) for part in sizes)
    scores = [_silhouette(distance, part.labels) for distance, part in zip(distances, both, strict=True)]
    return Granularity(
        n_clusters=(both[0].n_clusters, both[1].n_clusters),
        median_size=(float(sizes[0].double().median()), float(sizes[1].double().median())),
        largest=(int(sizes[0].max()), int(sizes[1].max())),
        silhouette=(scores[0], scores[1]),
        same_cluster=(image, text),
        gate=gate,
    )


def _silhouette(distance: Tensor, labels: Tensor) -> float | None:
    """Return the mean silhouette, or None where it is not defined."""
    from sklearn.metrics import silhouette_score

    if not 2 <= len(labels.unique()) < len(labels):
        return None
    return float(silhouette_score(distance.numpy(), labels.numpy(), metric="precomputed"))


def _with_clusters(spec: str, n_clusters: int) -> str:
    """Return the spec of a clusterer with another number of clusters."""
    name, given = parse_spec(spec)
    options = ",".join(f"{key}={value}" for key, value in {**given, "n_clusters": str(n_clusters)}.items())
    registry.default_registry().resolve("clusterer", f"{name}:{options}")
    return f"{name}:{options}"


def _gates(clusters: Clusters, quantiles: Sequence[float], false: tuple[Tensor, Tensor], false_share: float) -> list[Gate]:
    both = (clusters.image_similarity, clusters.image), (clusters.text_similarity, clusters.text)
    images, texts = (pair_quantiles(similarity, part.sizes(), quantiles) for similarity, part in both)
    return [_gate(clusters, *at, false, false_share) for at in zip(quantiles, images, texts, strict=True)]


def _gate(
    clusters: Clusters, quantile: float, image_at: float, text_at: float, false: tuple[Tensor, Tensor], false_share: float
) -> Gate:
    """Return what the thresholds of a quantile would do; all of 1 lets everything through but pairs of one cluster."""
    at = (image_at, text_at) if quantile < 1 else (None, None)
    image, text = reliable_tables(clusters, image_threshold=at[0], text_threshold=at[1])
    removed = removed_share(clusters, image, text)
    caught = lost = None
    left, right = false
    if len(left):
        a, c = clusters.image.labels, clusters.text.labels
        caught = float((~(image[a[left], a[right]] & text[c[left], c[right]])).double().mean())
        lost = max(0.0, (removed - false_share * caught) / (1.0 - false_share)) if false_share < 1 else None
    return Gate(quantile, image_at, text_at, removed, caught, lost)


def _false_share(truth: Tensor) -> float:
    """Return the share of pairs of two different samples that show the same."""
    sizes, n = truth.bincount().double(), len(truth)
    return float((sizes * (sizes - 1)).sum() / max(n * (n - 1), 1))
