"""The clusters: how large they are, what is in them, and how those of images and of texts go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.artifacts import ClustersFolder
from clip_negatives.interfaces import Clustering
from clip_negatives.report.charts.lines import Line, lines
from clip_negatives.report.charts.similarities import shares
from clip_negatives.report.formats import count, decimal
from clip_negatives.report.page import Plot, Table

NEAREST, FARTHEST = 8, 4
"""Members of a cluster that are shown."""

TOP = 12
"""Clusters of each modality in the table of agreement."""

ROWS = 65_536
"""Samples whose features are held at a time."""


@dataclass(frozen=True, slots=True)
class Card:
    """Hold what is shown of one cluster.

    Attributes:
        number: its label.
        size: its members.
        why: why it is among those shown.
        tightness: mean cosine of its members to its centroid; None without features.
        nearest: members, the nearest to the centroid first.
        farthest: members, the farthest first; without features all are in `nearest`, as they come.
    """

    number: int
    size: int
    why: str
    tightness: float | None
    nearest: tuple[int, ...]
    farthest: tuple[int, ...]


def closeness(clustering: Clustering, features: Tensor | None) -> Tensor | None:
    """Return the cosine of each sample to its centroid, float32, shape (N,)."""
    if features is None:
        return None
    centroids, parts = F.normalize(clustering.centroids.float(), dim=1), []
    for start in range(0, len(features), ROWS):
        own = centroids[clustering.labels[start : start + ROWS]]
        parts.append((features[start : start + ROWS].float() * own).sum(dim=1))
    return torch.cat(parts)


def cards(clustering: Clustering, near: Tensor | None, most: int) -> list[Card]:
    """Return the clusters to show: in turn the largest, the loosest and the smallest, until there are `most`."""
    sizes = clustering.sizes()
    orders = {"among the largest": sizes.argsort(descending=True, stable=True)}
    mean = None
    if near is not None:
        mean = torch.zeros(len(sizes)).index_add_(0, clustering.labels, near) / sizes
        several = torch.where(sizes > 2, mean, torch.inf)  # alone, a sample is its centroid
        orders["among the loosest"] = several.argsort(stable=True)
    orders["among the smallest"] = sizes.argsort(stable=True)
    chosen: dict[int, str] = {}
    for place in range(len(sizes)):
        for why, order in orders.items():
            if len(chosen) < most:
                chosen.setdefault(int(order[place]), why)
    found = []
    for number, why in sorted(chosen.items(), key=lambda item: list(orders).index(item[1])):
        tightness = None if mean is None else float(mean[number])
        found.append(Card(number, int(sizes[number]), why, tightness, *_members(clustering, near, number)))
    return found


def sizes_plot(folder: ClustersFolder) -> Plot:
    """Draw how large the clusters are, from the largest on."""
    series, rows = {}, []
    for name, clustering in (("image clusters", folder.clusters.image), ("text clusters", folder.clusters.text)):
        sizes = clustering.sizes().sort(descending=True).values
        series[name] = Line(list(range(1, len(sizes) + 1)), sizes.tolist())
        marks = torch.quantile(sizes.double(), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()).tolist()
        rows.append((name, count(len(sizes)), *map(count, marks), count(int((sizes == 1).sum()))))
    columns = "", "clusters", "smallest", "lower quartile", "median", "upper quartile", "largest", "of one sample"
    table = Table("Sizes of the clusters", columns, tuple(rows))
    note = "Clusters from the largest to the smallest. A steep start is a few clusters that hold much of the data."
    axes = {"xlabel": "cluster, by size", "ylabel": "samples", "log": ("y",)}
    return lines("Sizes of the clusters", series, note=note, table=table, **axes)  # type: ignore[arg-type]


def agreement(folder: ClustersFolder) -> tuple[Table, Plot]:
    """Return how well the image clusters tell the text clusters, in figures and as a picture of the largest."""
    from sklearn.metrics import adjusted_mutual_info_score, homogeneity_completeness_v_measure

    image, text = folder.clusters.image, folder.clusters.text
    both = image.labels.numpy(), text.labels.numpy()
    homogeneity, completeness, normalized = homogeneity_completeness_v_measure(*both)
    figures = {
        "adjusted mutual information": adjusted_mutual_info_score(*both),
        "normalized mutual information": normalized,
        "what the text cluster tells of the image cluster (homogeneity)": homogeneity,
        "what the image cluster tells of the text cluster (completeness)": completeness,
    }
    rows = tuple((name, decimal(float(value))) for name, value in figures.items())
    table = Table("Agreement of image clusters and text clusters", ("measure", "0 none .. 1 the same"), rows)
    largest = image.sizes().argsort(descending=True, stable=True)[:TOP]
    joint = torch.stack([text.labels[image.labels == number].bincount(minlength=text.n_clusters) for number in largest])
    columns = joint.sum(dim=0).argsort(descending=True, stable=True)[:TOP]
    columns = columns[joint[:, columns].double().argmax(dim=0).argsort(stable=True)]  # as near to a diagonal as can be
    part = (joint[:, columns].double() / joint.sum(dim=1, keepdim=True)).numpy().astype(np.float64)
    note = (
        f"In %, the share of each of the {len(largest)} largest image clusters that lies in the text clusters it has the most "
        "samples in. One dark cell in a row: images that look alike are described alike."
    )
    names = [str(number) for number in largest.tolist()], [str(number) for number in columns.tolist()]
    return table, shares("Where the samples of the largest image clusters have their texts", part, *names, note=note)


def typical(folder: ClustersFolder, near: Mapping[str, Tensor | None]) -> dict[str, list[int]]:
    """Return for each modality the sample of each cluster that is nearest to its centroid."""
    found = {}
    for name, clustering in (("image", folder.clusters.image), ("text", folder.clusters.text)):
        closest = near[name]
        order = torch.arange(clustering.n_samples) if closest is None else closest.argsort(stable=True)
        # The last one that is written stays: the nearest.
        first = torch.zeros(clustering.n_clusters, dtype=torch.int64)
        first[clustering.labels[order]] = order
        found[name] = first.tolist()
    return found


def _members(clustering: Clustering, near: Tensor | None, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the nearest members of a cluster and the farthest, none twice."""
    members = (clustering.labels == number).nonzero().flatten()
    if near is None:
        return tuple(members[: NEAREST + FARTHEST].tolist()), ()
    ordered = members[near[members].argsort(descending=True, stable=True)].tolist()
    if len(ordered) <= NEAREST + FARTHEST:
        return tuple(ordered[:NEAREST]), tuple(reversed(ordered[NEAREST:]))
    return tuple(ordered[:NEAREST]), tuple(reversed(ordered[-FARTHEST:]))
