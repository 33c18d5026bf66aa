"""Sizes, members and agreement of the clusters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.meter.suspects import modalities
from clip_negatives.report.charts import Line, lines
from clip_negatives.report.inspection.similarities import shares
from clip_negatives.report.page import Plot, Table, count, decimal

NEAREST, FARTHEST = 8, 4  # members of a cluster that are shown
TOP = 12  # clusters of each modality in the heat map of agreement
ROWS = 65_536  # samples whose features are copied at a time


class Card(NamedTuple):
    """A cluster to show."""

    number: int
    size: int
    reason: str
    tightness: float | None  # mean cosine of the members to the centroid; None without features
    nearest: list[int]  # to the centroid, nearest first; without features, the first members
    farthest: list[int]  # farthest first; empty without features


def centroid_cosines(clustering: Clustering, features: Tensor | None) -> Tensor | None:
    """Return the cosine of each sample to its centroid, float32, shape (N,); None without features."""
    if features is None:
        return None
    centroids = F.normalize(clustering.centroids.float(), dim=1)
    chunks = zip(features.split(ROWS), clustering.labels.split(ROWS), strict=True)
    return torch.cat([(part.float() * centroids[labels]).sum(dim=1) for part, labels in chunks])


def cards(clustering: Clustering, cosines: Tensor | None, max_cards: int) -> list[Card]:
    """Return up to `max_cards` clusters: by turns the next largest, loosest and smallest."""
    sizes = clustering.sizes()
    orders = {"among the largest": sizes.argsort(descending=True, stable=True)}
    mean = None
    if cosines is not None:
        mean = torch.zeros(len(sizes)).index_add_(0, clustering.labels, cosines) / sizes
        tightness_or_inf = torch.where(sizes > 2, mean, torch.inf)  # tiny clusters are never loose
        orders["among the loosest"] = tightness_or_inf.argsort(stable=True)
    orders["among the smallest"] = sizes.argsort(stable=True)
    chosen: dict[int, str] = {}
    for numbers in zip(*(order.tolist() for order in orders.values()), strict=True):
        for number, reason in zip(numbers, orders, strict=True):
            if len(chosen) < max_cards:
                chosen.setdefault(number, reason)
    results = []
    for number, reason in sorted(chosen.items(), key=lambda item: list(orders).index(item[1])):
        tightness = None if mean is None else float(mean[number])
        results.append(Card(number, int(sizes[number]), reason, tightness, *_members(clustering, cosines, number)))
    return results


def sizes_plot(clusters: Clusters) -> Plot:
    """Return a plot of the cluster sizes in descending order."""
    series, rows = {}, []
    for part in modalities(clusters):
        name, sizes = f"{part.name} clusters", part.clustering.sizes().sort(descending=True).values
        series[name] = Line(list(range(1, len(sizes) + 1)), sizes.tolist())
        marks = torch.quantile(sizes.double(), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()).tolist()
        rows.append((name, *map(count, (len(sizes), *marks, int((sizes == 1).sum())))))
    title = "Cluster sizes"
    columns = "", "clusters", "smallest", "lower quartile", "median", "upper quartile", "largest", "with one sample"
    note = "Clusters in descending order of size. A steep start means that a few clusters hold much of the data."
    table = Table(title, columns, rows)
    return lines(title, series, note, log="y", table=table, xlabel="rank of the cluster by size", ylabel="samples")


def agreement(clusters: Clusters) -> tuple[Table, Plot]:
    """Return how well image clusters and text clusters agree: measures, and a heat map of the largest clusters."""
    from sklearn.metrics import adjusted_mutual_info_score, homogeneity_completeness_v_measure

    image, text = clusters.image, clusters.text
    labels = image.labels.numpy(), text.labels.numpy()
    homogeneity, completeness, normalized = homogeneity_completeness_v_measure(*labels)
    measures = {
        "adjusted mutual information": adjusted_mutual_info_score(*labels),
        "normalized mutual information": normalized,
        "homogeneity (1: the images of each text cluster are in one image cluster)": homogeneity,
        "completeness (1: the texts of each image cluster are in one text cluster)": completeness,
    }
    rows = [(name, decimal(float(value))) for name, value in measures.items()]
    table = Table("Agreement of image clusters and text clusters: 0 = none, 1 = identical", ("measure", "value"), rows)
    largest = image.sizes().argsort(descending=True, stable=True)[:TOP]
    joint = torch.stack([text.labels[image.labels == number].bincount(minlength=text.n_clusters) for number in largest])
    columns = joint.sum(dim=0).argsort(descending=True, stable=True)[:TOP]
    columns = columns[joint[:, columns].double().argmax(dim=0).argsort(stable=True)]  # near the diagonal
    part = (joint[:, columns].double() / joint.sum(dim=1, keepdim=True)).numpy().astype(np.float64)
    note = (
        f"Percentage of the samples of an image cluster (row) in a text cluster (column), for the {len(largest)} largest image "
        "clusters. A single dark cell in a row: these similar images have similar texts."
    )
    return table, shares("Text clusters of the largest image clusters", part, largest.tolist(), columns.tolist(), note)


def typical(clustering: Clustering, cosines: Tensor | None) -> list[int]:
    """Return the sample nearest to each centroid; without `cosines`, any member."""
    order = torch.arange(clustering.n_samples) if cosines is None else cosines.argsort(stable=True)
    nearest = torch.zeros(clustering.n_clusters, dtype=torch.int64)
    nearest[clustering.labels[order]] = order  # the last assignment stays: the nearest sample
    return nearest.tolist()


def _members(clustering: Clustering, cosines: Tensor | None, number: int) -> tuple[list[int], list[int]]:
    """Return the nearest and the farthest members of a cluster, without overlap."""
    members = (clustering.labels == number).nonzero().flatten()
    if cosines is None:
        return members[: NEAREST + FARTHEST].tolist(), []
    ordered = members[cosines[members].argsort(descending=True, stable=True)].tolist()
    return ordered[:NEAREST], ordered[NEAREST:][-FARTHEST:][::-1]
