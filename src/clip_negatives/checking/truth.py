"""What is known about a data set: groups, texts, and a random sample of its neighbourhoods."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from clip_negatives.heads import Neighbourhoods, SimilarPairs
from clip_negatives.progress import stage
from clip_negatives.storage.clusters_folder import ClustersFolder
from clip_negatives.storage.sample_ids import group_ids, text_ids

MAX_SAMPLES = 20_000  # samples whose neighbours are compared, drawn at random
LEAST_COVERAGE = 0.5  # share of samples with a group, from which groups are the truth


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """Random samples of a data set, and their neighbourhoods.

    Attributes:
        rows: sample ids, int64, shape (n,), ascending.
        neighbourhoods: those of these samples, among each other.
        pairs: the similar pairs that are not known to be different; sample i is ``rows[i]``.
    """

    rows: Tensor
    neighbourhoods: Neighbourhoods
    pairs: SimilarPairs


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is known about the samples of a clusters folder.

    Attributes:
        texts: id of the text of each sample, int64, shape (N,).
        groups: id of the group of each sample, int64, shape (N,); None without groups.
        coverage: share of the samples with a group, 0 .. 1.
        sampled: random samples; None without features.
    """

    texts: Tensor
    groups: Tensor | None
    coverage: float
    sampled: Sampled | None

    @property
    def has_groups(self) -> bool:
        """Return whether enough samples have a group for groups to be the truth."""
        return self.groups is not None and self.coverage >= LEAST_COVERAGE


def truth_about(folder: ClustersFolder, different: Sequence[tuple[int, int]] = ()) -> Truth:
    """Return what is known about the samples of a clusters folder.

    Args:
        folder: the clusters.
        different: pairs of samples, the smaller number first, that are known to be different: they are not similar pairs.
    """
    samples = folder.samples
    coverage = 0.0
    if "group" in samples.column_names:
        coverage = float(pc.mean(pc.not_equal(pc.fill_null(samples["group"], ""), "").cast(pa.float64())).as_py() or 0.0)
    return Truth(text_ids(samples), group_ids(samples), coverage, _sampled(folder, different))


def with_groups(folder: ClustersFolder, groups: Sequence[str]) -> ClustersFolder:
    """Return the same clusters, in memory, with other groups; "" is a sample without a group."""
    samples = folder.samples
    if "group" in samples.column_names:
        samples = samples.drop_columns(["group"])
    samples = samples.append_column("group", pa.array(groups, pa.string()))
    return dataclasses.replace(
        folder, samples=samples, clusters=dataclasses.replace(folder.clusters, groups=group_ids(samples))
    )


def _sampled(folder: ClustersFolder, different: Sequence[tuple[int, int]]) -> Sampled | None:
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
    return Sampled(rows, neighbourhoods, pairs.take(~is_different))
