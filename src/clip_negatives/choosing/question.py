"""The question that folds ask: which samples are new to the heads, and which answers are correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clip_negatives.advice import argument
from clip_negatives.errors import InputError
from clip_negatives.heads import near_duplicates
from clip_negatives.interfaces import Clusters
from clip_negatives.storage.sample_ids import integer_ids

GROUP, NEAR_DUPLICATES = "group", "near-duplicates"


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What the folds ask.

    Attributes:
        text: the question in words.
        components: samples of one component are all in the same fold, int64, shape (N,).
        items: an image is a correct answer to the text of a sample of the same item, int64, shape (N,).
    """

    text: str
    components: Tensor
    items: Tensor


def question_of(clusters: Clusters, fold_by: str | None, values: Sequence[str] | None) -> Question:
    """Return the question for the samples of `clusters`.

    Args:
        clusters: the samples, with features.
        fold_by: "group", "near-duplicates", or the name of a column; None is "group" if the samples have groups.
        values: the values of this column, one for each sample; None without a column.

    Raises:
        InputError: the samples have no groups, or the values of the column are missing.
    """
    if fold_by is None:
        fold_by = NEAR_DUPLICATES if clusters.groups is None else GROUP
    if values is not None:
        items = clusters.groups if clusters.groups is not None else _near_duplicates(clusters)
        return Question(f"values of {fold_by}", integer_ids(values), items)
    if fold_by == GROUP:
        if clusters.groups is None:
            remedy = f"Prepare them with --group-column, or use {argument('fold_by')} {NEAR_DUPLICATES}."
            raise InputError(f"The clusters have no groups. {remedy}")
        return Question("groups", clusters.groups, clusters.groups)
    if fold_by != NEAR_DUPLICATES:
        raise InputError(
            f"{argument('fold_by')} names the column {fold_by!r}, whose values are not in the clusters folder. Name the table "
            f"with {argument('data')}."
        )
    components = _near_duplicates(clusters)
    return Question("near-duplicates, detected without labels", components, components)


def _near_duplicates(clusters: Clusters) -> Tensor:
    return near_duplicates(*(clusters.features_of(name, "Detecting near-duplicates") for name in ("image", "text")))
