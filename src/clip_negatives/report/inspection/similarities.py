"""How similar clusters and samples are, and what the weighting makes of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.interfaces import Clustering
from clip_negatives.report.charts.similarities import heatmap, histograms
from clip_negatives.report.formats import caption, percent, plural
from clip_negatives.report.inspection.sampled import PAIRS, SampledPairs
from clip_negatives.report.inspection.setting import Thresholds
from clip_negatives.report.page import Plot
from clip_negatives.sampling import epoch_generator
from clip_negatives.similarity import pair_counts

MOST = 300
"""Clusters of a heat map; of more, the largest."""

BINS = 50

ROWS = 8192
"""Pairs whose features are held at a time."""


def heatmaps(folder: ClustersFolder, thresholds: Thresholds, typical: dict[str, list[int]]) -> list[Plot]:
    """Draw the similarity between the image clusters and between the text clusters."""
    clusters, found = folder.clusters, []
    for name, clustering, similarity, threshold in (
        ("image", clusters.image, clusters.image_similarity, thresholds.image),
        ("text", clusters.text, clusters.text_similarity, thresholds.text),
    ):
        labels = _ordered(clustering, similarity)
        part = similarity[labels][:, labels].double().numpy()
        texts = [caption(str(folder.samples["text"][typical[name][label]].as_py())) for label in labels.tolist()]
        which = f"the {MOST} largest of {clustering.n_clusters:,}" if clustering.n_clusters > MOST else "all"
        note = f"Cosine between the centroids of {which} {name} clusters."
        if threshold is not None:
            note += f" Orange: at or over the threshold {threshold:.2f}, too similar to exchange texts."
        title = f"Similarity of the {name} clusters"
        found.append(heatmap(title, part, threshold, labels=labels.tolist(), names=texts, note=note))
    return found


def distributions(folder: ClustersFolder, thresholds: Thresholds, seed: int) -> list[Plot]:
    """Draw how similar pairs are, by their clusters and by themselves."""
    clusters, edges, found = folder.clusters, np.linspace(-1.0, 1.0, BINS + 1), []
    left, right = _uniform_pairs(clusters.n_samples, seed)
    for name, clustering, similarity, features, threshold in (
        ("image", clusters.image, clusters.image_similarity, clusters.image_features, thresholds.image),
        ("text", clusters.text, clusters.text_similarity, clusters.text_features, thresholds.text),
    ):
        counts = pair_counts(clustering.sizes())
        series = {"their clusters": _histogram(similarity.flatten().numpy(), edges, counts.flatten().numpy())}
        note = "All pairs, by the similarity of their clusters"
        if features is not None:
            series[f"the {name}s themselves"] = _histogram(_cosines(features, left, right), edges)
            note += f"; and {PAIRS:,} random pairs, by the similarity of the samples themselves"
        if threshold is not None:
            over = float((counts * (similarity >= threshold)).sum() / counts.sum())
            note += f". At or over the threshold: {percent(over)} of all pairs"
        title, xlabel = f"How similar two {name}s are", "cosine of frozen features"
        found.append(histograms(title, series, edges, note=f"{note}.", xlabel=xlabel, threshold=threshold))
    return found


def weights(sampled: SampledPairs, false: Tensor, truth: str) -> Plot:
    """Draw how the weighting weighs the pairs that it keeps.

    Args:
        sampled: pairs of batches.
        false: weights of pairs that are in truth correct, as multiples of the same mean; empty where none are known.
        truth: what such pairs share.
    """
    kept = sampled.weights[sampled.weights > 0].double().numpy()
    top = max(2.0, float(np.quantile(kept, 0.999)) if len(kept) else 2.0)
    edges = np.linspace(0.0, top, BINS + 1)
    series = {"kept pairs of batches": _histogram(np.clip(kept, 0.0, top), edges)}
    note = f"{plural(PAIRS, 'random pair')} of batches: {percent(sampled.removed_share)} are removed."
    if len(false):
        left = false[false > 0].double().numpy()
        series[f"kept pairs of the same {truth}"] = _histogram(np.clip(left, 0.0, top), edges)
        note += f" Random pairs of the same {truth}: {percent(1 - len(left) / len(false))} are removed."
    note += " Of the others, the weight as a multiple of its mean: 1 counts as any other pair, 0.3 counts a third of that."
    return histograms("How much a pair counts", series, edges, note=note, xlabel="weight, mean 1 over batches")


def _ordered(clustering: Clustering, similarity: Tensor) -> Tensor:
    """Return the largest clusters, so that similar ones are neighbours: the leaves of a hierarchical clustering."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    largest = clustering.sizes().argsort(descending=True, stable=True)[:MOST].sort().values
    if len(largest) < 3:
        return largest
    distance = (1.0 - similarity[largest][:, largest].double()).clamp(min=0.0).numpy()
    tree = linkage(squareform((distance + distance.T) / 2, checks=False), method="average")
    return largest[torch.from_numpy(leaves_list(tree).astype(np.int64))]


def _uniform_pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return pairs of two different samples."""
    generator = epoch_generator(seed, 2)
    left = torch.randint(n, (PAIRS,), generator=generator)
    return left, (left + torch.randint(1, n, (PAIRS,), generator=generator)) % n


def _cosines(features: Tensor, left: Tensor, right: Tensor) -> npt.NDArray[np.float64]:
    parts = [
        (features[i].float() * features[j].float()).sum(dim=1) for i, j in zip(left.split(ROWS), right.split(ROWS), strict=True)
    ]
    whole: npt.NDArray[np.float64] = torch.cat(parts).clamp(-1.0, 1.0).double().numpy()
    return whole


def _histogram(
    values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64], counts: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """Return the share of each bin; all 0 where there are no values."""
    found: npt.NDArray[np.float64] = np.histogram(values, edges, weights=counts)[0].astype(np.float64)
    return found / max(float(found.sum()), 1e-300)
