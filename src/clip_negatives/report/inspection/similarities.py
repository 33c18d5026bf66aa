"""Heat maps and histograms of similarities, weights and shares."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_negatives.clustering.similarity import pair_counts
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.meter.suspects import SAMPLED_PAIRS, modalities, pair_cosines, random_pairs
from clip_negatives.report.charts import DASHED, INK, SERIES, plot
from clip_negatives.report.inspection.pairs import SampledPairs
from clip_negatives.report.inspection.setting import Thresholds
from clip_negatives.report.page import Plot, Table, caption, decimal, isolated, percent, plural, with_minus
from clip_negatives.sampling import epoch_generator
from clip_negatives.storage.clusters_folder import ClustersFolder

MAX_CLUSTERS = 300  # clusters in a heat map
MOST_SIMILAR = 10  # pairs of clusters in the table of a heat map
BINS = 50

UNDER, OVER = (0.18, 0.46, 0.71), (0.87, 0.44, 0.10)
"""RGB of cells below the threshold, and at or above it; the value of a cell sets the opacity."""

Values = npt.NDArray[np.float64]


def heatmaps(folder: ClustersFolder, thresholds: Thresholds, typical: Mapping[str, list[int]]) -> list[Plot]:
    """Return heat maps of the similarity between image clusters and between text clusters."""
    plots = []
    for name, clustering, similarity, _ in modalities(folder.clusters):
        threshold, labels = getattr(thresholds, name), _ordered(clustering, similarity)
        cosines = similarity[labels][:, labels].double().numpy()
        texts = [caption(str(folder.samples["text"][typical[name][label]].as_py())) for label in labels.tolist()]
        subset = f"the {MAX_CLUSTERS} largest of {clustering.n_clusters:,}" if clustering.n_clusters > MAX_CLUSTERS else "all"
        note = f"Cosine between the centroids of {subset} {name} clusters."
        if threshold is not None:
            note += f" Orange: at or above the threshold of {threshold:.2f}, too similar to exchange texts."
        plots.append(_heatmap(f"Similarity of {name} clusters", cosines, threshold, labels.tolist(), texts, note))
    return plots


def distributions(clusters: Clusters, thresholds: Thresholds, seed: int) -> list[Plot]:
    """Return histograms of the similarity of pairs: between their clusters, and between their samples."""
    edges, plots = np.linspace(-1.0, 1.0, BINS + 1), []
    pairs = random_pairs(clusters.n_samples, epoch_generator(seed, 2))
    for name, clustering, similarity, features in modalities(clusters):
        threshold, counts = getattr(thresholds, name), pair_counts(clustering.sizes())
        series = {"clusters": _histogram(similarity.flatten().numpy(), edges, counts.flatten().numpy())}
        note = "Cosines between the clusters of all pairs"
        if features is not None:
            series[f"{name}s"] = _histogram(pair_cosines(features, *pairs).clamp(-1.0, 1.0).double().numpy(), edges)
            note += f", and between the {name}s of {SAMPLED_PAIRS:,} random pairs"
        note += "."
        if threshold is not None:
            over = float((counts * (similarity >= threshold)).sum() / counts.sum())
            note += f" {percent(over)} of all pairs are in clusters at or above the threshold."
        plots.append(_histograms(f"Similarity of {name} pairs", series, edges, note, "cosine of frozen features", threshold))
    return plots


def weights(sampled: SampledPairs, false_weights: Tensor, truth: str) -> Plot:
    """Return histograms of the weights of kept pairs and of random false negatives, which are `false_weights`."""
    kept = sampled.weights[sampled.weights > 0].double().numpy()
    top = max(2.0, float(np.quantile(kept, 0.999)) if len(kept) else 2.0)
    edges = np.linspace(0.0, top, BINS + 1)
    series = {"kept pairs of batches": _histogram(np.clip(kept, 0.0, top), edges)}
    removed = float((sampled.weights == 0).double().mean())
    note = (
        "Weights relative to the mean: a pair with weight 0.3 counts 0.3 times as much as the average pair. "
        f"Removed: {percent(removed)} of {plural(SAMPLED_PAIRS, 'random pair')} of batches"
    )
    if len(false_weights):
        kept_false = false_weights[false_weights > 0].double().numpy()
        series[f"kept false negatives (same {truth})"] = _histogram(np.clip(kept_false, 0.0, top), edges)
        note += f", and {percent(1 - len(kept_false) / len(false_weights))} of random false negatives"
    return _histograms("Weights of pairs", series, edges, f"{note}.", "weight (average kept pair = 1)")


def shares(title: str, table: Values, rows: Sequence[int], columns: Sequence[int], note: str) -> Plot:
    """Return a heat map of shares, 0 .. 1, of image clusters (rows) in text clusters (columns)."""

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        axis.imshow(_coloured(table, 2.0, lowest=0.0), interpolation="none", aspect="auto")
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set(xlabel="text cluster", ylabel="image cluster")
        axis.grid(visible=False)
        axis.tick_params(length=0)
        if len(rows) <= 12:
            for place in np.argwhere(table >= 0.05):
                axis.text(place[1], place[0], f"{100 * table[tuple(place)]:.0f}", ha="center", va="center", fontsize=8)

    cells = [(str(row), *(percent(share, 0) for share in line)) for row, line in zip(rows, table.tolist(), strict=True)]
    figures = Table(title, ("image cluster", *(f"text cluster {name}" for name in columns)), cells)
    return plot("Heat map", title, note, paint, height=330, table=figures)


def _heatmap(
    title: str, cosines: Values, threshold: float | None, labels: Sequence[int], texts: Sequence[str], note: str
) -> Plot:
    """Return a heat map of the cosines between clusters, given their labels and a typical text of each."""
    limit = 2.0 if threshold is None else threshold

    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1, 0.045))
        left.imshow(_coloured(cosines, limit), interpolation="none")
        left.set(xticks=[], yticks=[], xlabel=f"{len(labels)} clusters, similar ones side by side")
        scale = np.linspace(1.0, -1.0, 101)
        right.imshow(_coloured(scale[:, None], limit), aspect="auto", extent=(0, 1, -1, 1), interpolation="none")
        right.set(xticks=[], yticks=[-1, -0.5, 0, 0.5, 1])
        right.yaxis.tick_right()
        if threshold is not None:
            right.axhline(threshold, color=INK, linewidth=1.4)
        for axis in (left, right):
            axis.grid(visible=False)
            axis.spines[:].set_visible(True)

    pairs = np.stack(np.triu_indices(len(cosines), k=1), axis=1)
    order = np.argsort(-cosines[tuple(pairs.T)], kind="stable")[:MOST_SIMILAR]
    rows = [
        (f"{labels[i]} and {labels[j]}", isolated(texts[i]) + " / " + isolated(texts[j]), decimal(float(cosines[i, j])))
        for i, j in pairs[order].tolist()
    ]
    table = Table(f"{title}: the most similar clusters", ("clusters", "a typical text of each", "similarity"), rows)
    return plot("Heat map", title, note, paint, height=350, table=table)


def _histograms(
    title: str, series: Mapping[str, Values], edges: Values, note: str, xlabel: str, threshold: float | None = None
) -> Plot:
    """Return overlaid histograms; `series` has the share of each bin, 0 .. 1, by name, and `threshold` is marked."""

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        for colour, (name, part) in zip(SERIES, series.items(), strict=False):
            axis.stairs(100 * part, edges, color=colour, linewidth=1.6, label=name)
            axis.stairs(100 * part, edges, color=colour, fill=True, alpha=0.16)
        if threshold is not None:
            axis.axvline(threshold, **DASHED)
            offset, side = (4, "left") if threshold < (edges[0] + edges[-1]) / 2 + 0.2 else (-4, "right")
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top", "ha": side}
            axis.annotate(f"threshold {threshold:.2f}", (threshold, 1.0), (offset, -2), **place, fontsize=9.5)
        axis.set(xlabel=xlabel, ylabel="% of pairs", xlim=(edges[0], edges[-1]), ylim=(0, None))
        axis.grid(visible=False, axis="x")
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2)

    bins = [with_minus(f"{low:.2f} to {high:.2f}") for low, high in itertools.pairwise(edges)]
    figures = zip(bins, *(part.tolist() for part in series.values()), strict=True)
    rows = [(name, *(percent(share, 2) for share in part)) for name, *part in figures if max(part) > 0]
    table = Table(f"{title}: share of pairs by bin", (xlabel, *series), rows)
    return plot("Histogram", title, note, paint, height=210, table=table)


def _coloured(values: Values, threshold: float, *, lowest: float = -0.1) -> Values:
    """Return RGBA; opacity, not shade, shows the value, for light and dark pages. Values up to `lowest` are transparent."""
    strength = np.clip((values - lowest) / (1.0 - lowest), 0.0, 1.0)
    over = values >= threshold
    colours = np.where(over[..., None], OVER, UNDER)
    opacity = np.where(over, 0.35 + 0.65 * strength, 0.9 * strength)
    rgba: Values = np.concatenate([colours, opacity[..., None]], axis=-1)
    return rgba


def _ordered(clustering: Clustering, similarity: Tensor) -> Tensor:
    """Return the largest clusters, similar ones side by side (leaves of a hierarchical clustering)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    largest = clustering.sizes().argsort(descending=True, stable=True)[:MAX_CLUSTERS].sort().values
    if len(largest) < 3:
        return largest
    distance = (1.0 - similarity[largest][:, largest].double()).clamp(min=0.0).numpy()
    tree = linkage(squareform((distance + distance.T) / 2, checks=False), method="average")
    return largest[torch.from_numpy(leaves_list(tree).astype(np.int64))]


def _histogram(values: Values, edges: Values, counts: Values | None = None) -> Values:
    """Return the share of each bin; all shares are 0 if there are no values."""
    bins: Values = np.histogram(values, edges, weights=counts)[0].astype(np.float64)
    return bins / max(float(bins.sum()), 1e-300)
