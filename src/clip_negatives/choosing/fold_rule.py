"""Which samples the folds of a data set hold out together, and which answers to a held-out query are correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.errors import InputError
from clip_negatives.heads import near_duplicates
from clip_negatives.interfaces import Clusters
from clip_negatives.storage.sample_ids import MIN_GROUP_COVERAGE, integer_ids

GROUP, NEAR_DUPLICATES = "group", "near-duplicates"


@dataclass(frozen=True, slots=True, eq=False)
class FoldRule:
    """A rule that divides samples into folds.

    Attributes:
        description: what the folds hold out, in words.
        components: samples of one component are all in the same fold, int64, shape (N,).
        items: an image is a correct answer to the text of a sample of the same item, int64, shape (N,).
    """

    description: str
    components: Tensor
    items: Tensor


def fold_rule(clusters: Clusters, fold_by: str | None, values: Sequence[str] | None, group_coverage: float = 1.0) -> FoldRule:
    """Return the rule for the samples of `clusters`.

    Groups are used if at least half of the samples have one; this is the rule of `clip_negatives.checking.check` too.

    Args:
        clusters: the samples, with features.
        fold_by: "group", "near-duplicates", or the name of a column; None is "group" if groups are used, else
            "near-duplicates".
        values: the values of this column, one for each sample; None without a column.
        group_coverage: share of the samples with a group, 0 .. 1; it has no effect if `clusters` has no groups.

    Raises:
        InputError: the samples have no groups, or the values of the column are missing.
    """
    groups = clusters.groups if group_coverage >= MIN_GROUP_COVERAGE else None
    if fold_by is None:
        fold_by = NEAR_DUPLICATES if groups is None else GROUP
    if values is not None:
        items = groups if groups is not None else _near_duplicates(clusters)
        return FoldRule(f"values of {fold_by}", integer_ids(values), items)
    if fold_by == GROUP:
        if clusters.groups is None:
            remedy = f"Prepare them with --group-column, or use {argument('fold_by')} {NEAR_DUPLICATES}."
            raise InputError(f"The clusters have no groups. {remedy}")
        return FoldRule("groups", clusters.groups, clusters.groups)
    if fold_by != NEAR_DUPLICATES:
        raise InputError(
            f"{argument('fold_by')} names the column {fold_by!r}, whose values are not in the clusters folder. Name the table "
            f"with {argument('data', 'fold_values=')}."
        )
    components = _near_duplicates(clusters)
    return FoldRule("near-duplicates, detected without labels", components, components)


def _near_duplicates(clusters: Clusters) -> Tensor:
    return near_duplicates(*(clusters.features_of(name, "Detecting near-duplicates") for name in ("image", "text")))
