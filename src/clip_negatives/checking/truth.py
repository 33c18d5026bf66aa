"""Ground truth about a data set: groups, texts, and the neighbourhoods of a random sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from clip_negatives.heads import Neighbourhoods, SimilarPairs
from clip_negatives.progress import stage
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.sample_ids import MIN_GROUP_COVERAGE, group_coverage, group_ids, text_ids

MAX_SAMPLES = 20_000  # samples whose neighbours are compared, drawn at random


@dataclass(frozen=True, slots=True, eq=False)
class NeighbourSample:
    """Random samples of a data set, and their neighbourhoods.

    Attributes:
        rows: sample ids, int64, shape (n,), ascending.
        neighbourhoods: nearest samples of each of these samples, among them.
        pairs: the similar pairs that are not known to be different; sample i is ``rows[i]``.
    """

    rows: Tensor
    neighbourhoods: Neighbourhoods
    pairs: SimilarPairs


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """Ground truth about the samples of a clusters folder.

    Attributes:
        texts: id of the text of each sample, int64, shape (N,).
        groups: id of the group of each sample, int64, shape (N,); None without groups.
        coverage: share of the samples with a group, 0 .. 1.
        neighbour_sample: random samples and their neighbourhoods; None without features.
    """

    texts: Tensor
    groups: Tensor | None
    coverage: float
    neighbour_sample: NeighbourSample | None

    @property
    def has_groups(self) -> bool:
        """Return whether groups are used: at least half of the samples have one."""
        return self.groups is not None and self.coverage >= MIN_GROUP_COVERAGE


def truth_about(folder: ClustersFolder, different: Sequence[tuple[int, int]] = ()) -> GroundTruth:
    """Return what is known about the samples of a clusters folder.

    Args:
        folder: the clusters.
        different: pairs of samples, the smaller number first, that are known to be different: they are not similar pairs.
    """
    samples = folder.samples
    coverage = group_coverage(samples)
    return GroundTruth(text_ids(samples), group_ids(samples), coverage, _neighbour_sample(folder, different))


def with_groups(folder: ClustersFolder, groups: Sequence[str]) -> ClustersFolder:
    """Return the same clusters, in memory, with other groups; "" is a sample without a group."""
    samples = folder.samples
    if "group" in samples.column_names:
        samples = samples.drop_columns(["group"])
    samples = samples.append_column("group", pa.array(groups, pa.string()))
    return dataclasses.replace(
        folder, samples=samples, clusters=dataclasses.replace(folder.clusters, groups=group_ids(samples))
    )


def _neighbour_sample(folder: ClustersFolder, different: Sequence[tuple[int, int]]) -> NeighbourSample | None:
    clusters = folder.clusters
    if clusters.image_features is None or clusters.text_features is None or clusters.n_samples < 2:
        return None
    rows = torch.arange(clusters.n_samples)
    if len(rows) > MAX_SAMPLES:
        rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MAX_SAMPLES].sort().values
    with stage("Comparing neighbours"):
        neighbourhoods = Neighbourhoods.of(clusters.image_features[rows], clusters.text_features[rows])
        pairs = neighbourhoods.pairs()
    known = torch.tensor([left * clusters.n_samples + right for left, right in different], dtype=torch.int64)
    is_different = torch.isin(rows[pairs.left] * clusters.n_samples + rows[pairs.right], known)
    return NeighbourSample(rows, neighbourhoods, pairs.take(~is_different))
