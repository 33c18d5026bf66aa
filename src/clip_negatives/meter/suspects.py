"""Share of suspect pairs (possible false negatives) among all pairs of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from clip_negatives.clustering.similarity import pair_counts
from clip_negatives.interfaces import Clustering, Clusters
from clip_negatives.meter.reading import Suspects
from clip_negatives.sampling import epoch_generator
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.sample_ids import group_ids, text_ids

SAMPLED_PAIRS = 200_000  # random pairs in an estimate; the error of a share p is about sqrt(p / 200,000)
ROWS = 8192  # pairs whose features are copied at a time


class Modality(NamedTuple):
    """Images or texts of the clustered data: name, clusters, their similarity and the features."""

    name: str
    clustering: Clustering
    similarity: Tensor
    features: Tensor | None


def modalities(clusters: Clusters) -> list[Modality]:
    """Return images and texts; raises InputError if there are too many clusters for a table of similarities."""
    return [
        Modality(
            name, getattr(clusters, name), clusters.similarity_of(name, "the meter"), getattr(clusters, f"{name}_features")
        )
        for name in ("image", "text")
    ]


def truths_of(folder: ClustersFolder) -> dict[str, Tensor]:
    """Return codes of "text" and, if present, of "group", int64, shape (N,); the samples of a false negative share a code."""
    groups = group_ids(folder.samples)
    return {"text": text_ids(folder.samples), **({} if groups is None else {"group": groups})}


def truth_of(folder: ClustersFolder) -> tuple[str, Tensor]:
    """Return "group" and its codes or, without groups, "text" and its codes, int64, shape (N,)."""
    groups = group_ids(folder.samples)
    return ("text", text_ids(folder.samples)) if groups is None else ("group", groups)


def suspects_of(folder: ClustersFolder, batch_size: int, threshold: float, seed: int) -> Iterator[Suspects]:
    """Yield the frequency of each kind of suspect pair; only pairs of similar samples are estimated from random pairs."""

    def suspects(kind: str, share: float, *, exact: bool = True) -> Suspects:
        return Suspects(kind, share, share * (batch_size - 1), exact)

    parts = modalities(folder.clusters)
    labels = truths_of(folder) | {f"{part.name} cluster": part.clustering.labels for part in parts}
    for kind, codes in labels.items():
        yield suspects(f"same {kind}", same_share(codes))
    for name, clustering, similarity, _ in parts:
        counts = pair_counts(clustering.sizes())
        share = float((counts * (similarity > threshold)).sum() / counts.sum())
        yield suspects(f"{name} clusters with similarity over {threshold:g}", share)
    pairs = random_pairs(folder.clusters.n_samples, epoch_generator(seed, 0))
    for name, _, _, features in parts:
        if features is not None:
            over = int((pair_cosines(features, *pairs) > threshold).sum())
            yield suspects(f"{name}s with similarity over {threshold:g}", over / SAMPLED_PAIRS, exact=False)


def same_share(labels: Tensor) -> float:
    """Return the share of pairs of two different samples with the same label (int64, shape (N,)), 0 .. 1."""
    sizes, n = labels.bincount().double(), labels.numel()
    return float((sizes * (sizes - 1)).sum() / max(n * (n - 1), 1))


def random_pairs(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return `SAMPLED_PAIRS` random pairs of two different numbers below n, int64."""
    left = torch.randint(n, (SAMPLED_PAIRS,), generator=generator)
    return left, (left + torch.randint(1, n, (SAMPLED_PAIRS,), generator=generator)) % n


def pair_cosines(features: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the cosines of the pairs of samples, float32, shape (M,)."""
    chunks = zip(left.split(ROWS), right.split(ROWS), strict=True)
    return torch.cat([(features[i].float() * features[j].float()).sum(dim=1) for i, j in chunks])
