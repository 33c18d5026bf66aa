"""Effect of other thresholds and of other numbers of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_negatives.clustering.fit import cluster_features
from clip_negatives.clustering.reliability import ReliabilityGate
from clip_negatives.clustering.similarity import pair_quantiles, removed_share
from clip_negatives.errors import PluginError
from clip_negatives.host import registry
from clip_negatives.host.options import parse_spec
from clip_negatives.interfaces import Clusters
from clip_negatives.meter.suspects import modalities, same_share
from clip_negatives.pipelines.recipe import Recipe
from clip_negatives.report.charts import Line, lines
from clip_negatives.report.inspection.pairs import false_pairs
from clip_negatives.report.inspection.setting import QUANTILE
from clip_negatives.report.page import Plot, count
from clip_negatives.sampling import epoch_generator
from clip_negatives.storage.clusters_folder import ClustersFolder

QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)  # thresholds to try; 1 removes only pairs within a cluster
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # numbers of clusters to try, as multiples of the current number
SUBSAMPLE = 8000  # at most this many samples are clustered again


class Gate(NamedTuple):
    """Effect of a threshold that removes pairs of too similar clusters."""

    quantile: float  # of pair similarity: sets both thresholds
    image: float  # threshold of image clusters, a cosine
    text: float
    removed: float  # removed share of all pairs, 0 .. 1
    caught: float | None  # removed share of the false negatives; None without false negatives
    lost: float | None  # removed share of the true negatives; None without false negatives


class Granularity(NamedTuple):
    """Effect of another number of clusters, on a sub-sample; tuples hold the values of image and of text clusters."""

    gate: Gate  # effect of thresholds at `QUANTILE`
    n_clusters: tuple[int, int]
    median_size: tuple[float, float]
    largest: tuple[int, int]
    silhouette: tuple[float | None, float | None]  # mean by cosine, -1 .. 1; None if undefined
    same_cluster: tuple[float, float]  # share of pairs within a cluster, 0 .. 1


def gates(clusters: Clusters, truth: Tensor, seed: int, quantiles: Sequence[float] = QUANTILES) -> list[Gate]:
    """Return the effect of each quantile as the threshold."""
    (left, right), false_share = false_pairs(truth, seed), same_share(truth)
    image_labels, text_labels = clusters.image.labels, clusters.text.labels
    images, texts = (pair_quantiles(part.similarity, part.clustering.sizes(), quantiles) for part in modalities(clusters))
    results = []
    for quantile, image_at, text_at in zip(quantiles, images, texts, strict=True):
        gate = ReliabilityGate(image_threshold=image_at, text_threshold=text_at) if quantile < 1 else ReliabilityGate()
        image, text = gate.tables(clusters)
        removed, caught, lost = removed_share(clusters, image, text), None, None
        if len(left):
            kept = image[image_labels[left], image_labels[right]] & text[text_labels[left], text_labels[right]]
            caught = float((~kept).double().mean())
            lost = max(0.0, (removed - false_share * caught) / (1.0 - false_share)) if false_share < 1 else None
        results.append(Gate(quantile, image_at, text_at, removed, caught, lost))
    return results


def gates_plot(gates: Sequence[Gate], truth: str) -> Plot:
    """Return a plot of the removed share of false negatives and of all pairs by quantile."""
    x = [gate.quantile for gate in gates]
    series = {"all pairs": Line(x, [100 * gate.removed for gate in gates])}
    note = "Share of pairs that a threshold removes."
    if gates[0].caught is not None:
        series = {f"false negatives (same {truth})": Line(x, [100 * (gate.caught or 0.0) for gate in gates]), **series}
        note += " The larger the gap between the lines, the better the clusters separate false negatives from other pairs."
    title = "Pairs removed by threshold"
    return lines(title, series, note, points=True, xlabel="quantile of pair similarity", ylabel="% removed")


def granularities(folder: ClustersFolder, truth: Tensor, seed: int) -> tuple[list[Granularity], str]:
    """Return the effect of other numbers of clusters on a sub-sample; if there is none, also return the reason."""
    clusters = folder.clusters
    if clusters.image_features is None or clusters.text_features is None:
        repair = "Run clip-negatives prepare --keep-features."
        return [], f"The clusters folder has no features, so they cannot be clustered again. {repair}"
    subsample = torch.randperm(clusters.n_samples, generator=epoch_generator(seed, 3))[:SUBSAMPLE].sort().values
    features = clusters.image_features[subsample].float(), clusters.text_features[subsample].float()
    distances = [(1.0 - part @ part.T).clamp_(min=0.0).fill_diagonal_(0.0) for part in features]
    specs = [str(folder.manifest.get(name, Recipe.clusterer)) for name in ("clusterer", "text_clusterer")]
    results = []
    for factor in FACTORS:
        numbers = [max(2, round(factor * part.n_clusters)) for part in (clusters.image, clusters.text)]
        if max(numbers) > len(subsample) // 4:
            continue
        try:
            image, text = (_with_clusters(spec, n) for spec, n in zip(specs, numbers, strict=True))
            fitted = cluster_features(*features, clusterer=image, text_clusterer=text, seed=seed)
        except PluginError as error:
            return [], f"This clusterer does not accept another number of clusters. {error}"
        results.append(_granularity(fitted, distances, gates(fitted, truth[subsample], seed, [QUANTILE])[0]))
    return results, "" if results else "The data have too few samples to try other numbers of clusters."


def granularities_plots(granularities: Sequence[Granularity], current: int, batch_size: int) -> list[Plot]:
    """Return plots of the silhouette and of the pairs within a cluster by the number of clusters, if there are any."""
    if not granularities:
        return []
    silhouettes, pairs = {}, {}
    for place, name in enumerate(("image clusters", "text clusters")):
        x = [row.n_clusters[place] for row in granularities]
        silhouettes[name] = Line(x, [row.silhouette[place] or 0.0 for row in granularities])
        pairs[name] = Line(x, [row.same_cluster[place] * (batch_size - 1) for row in granularities])
    notes = (
        "1: samples are far from all other clusters; 0: on the border to the next cluster. Where the line is flat, the "
        "number of clusters matters little.",
        f"Average number of other samples of its cluster that a sample meets in a random batch of {count(batch_size)}. By "
        "cluster similarity, these pairs are the most similar.",
    )
    axes: dict[str, Any] = {"xlabel": "number of clusters", "marked": current, "points": True}
    return [
        lines("Silhouette by number of clusters", silhouettes, notes[0], ylabel="mean silhouette", log="x", **axes),
        lines("Pairs within a cluster", pairs, notes[1], ylabel="per sample", log="xy", **axes),
    ]


def _granularity(clusters: Clusters, distances: list[Tensor], gate: Gate) -> Granularity:
    from sklearn.metrics import silhouette_score

    figures = []
    for distance, part in zip(distances, (clusters.image, clusters.text), strict=True):
        sizes, silhouette = part.sizes(), None
        if 2 <= len(part.labels.unique()) < len(part.labels):
            silhouette = float(silhouette_score(distance.numpy(), part.labels.numpy(), metric="precomputed"))
        median = float(sizes.double().median())
        figures.append((part.n_clusters, median, int(sizes.max()), silhouette, same_share(part.labels)))
    return Granularity(gate, *zip(*figures, strict=True))


def _with_clusters(spec: str, n_clusters: int) -> str:
    """Return the spec of a clusterer with another number of clusters."""
    name, current = parse_spec(spec)
    options = ",".join(f"{key}={value}" for key, value in {**current, "n_clusters": str(n_clusters)}.items())
    registry.default_registry().resolve("clusterer", f"{name}:{options}")
    return f"{name}:{options}"
