"""Weightings by groups: samples with the same text, item or cluster."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_choice
from clip_negatives.interfaces import Clusters, LossTerms

GroupKind = Literal["text", "group", "image_cluster", "text_cluster"]


class IdMask:
    """Remove the incorrect pairs of two samples of one group.

    ``b_ij = -inf`` if ``y_i == y_j`` and i is not j, where y are the groups.

    * Source: common practice for data in which captions repeat.
    * Sign: removes pairs of one group, without a similarity; with ``by=image_cluster`` or ``text_cluster`` by the frozen
      similarity.

    Args:
        by: samples form a group if they have the same "text", "group" (group column), "image_cluster" or "text_cluster".

    Raises:
        InputError: the clusters have no texts, or no groups.
    """

    attract = False

    def __init__(self, by: GroupKind = "text") -> None:
        check_choice("by", by, get_args(GroupKind))
        self.by = by
        self.requires_only_ids = by in ("text", "group")

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return terms with the groups."""
        return LossTerms(groups=self._groups(clusters), attract=self.attract)

    def _groups(self, clusters: Clusters) -> Tensor:
        if self.by in ("image_cluster", "text_cluster"):
            return (clusters.image if self.by == "image_cluster" else clusters.text).labels
        groups = clusters.texts if self.by == "text" else clusters.groups
        if groups is None:
            remedy = (
                "Make the clusters with a group column: clip-negatives prepare --group-column."
                if self.by == "group"
                else "Use the clusters folder: a labels folder has no texts."
            )
            raise InputError(f"by={self.by} needs the {self.by} of each sample, which the clusters do not contain. {remedy}")
        return groups


class MultiPositive(IdMask):
    """Treat all samples of one group as positives of each other.

    ``T_ij = 1[y_i == y_j] / |P_i|`` in both directions, where y are the groups and P_i the samples of i's group in the batch.

    * Source: the targets of SupCon (Khosla et al., 2020, arXiv:2004.11362, its L_out) and UniCL (Yang et al., 2022,
      arXiv:2204.03610). As in both, the positives stay in the denominator.
    * Sign: attracts pairs of one group, without a similarity; with ``by=image_cluster`` or ``text_cluster`` by the frozen
      similarity.

    Args:
        by: samples form a group if they have the same "text", "group" (group column), "image_cluster" or "text_cluster".

    Raises:
        InputError: the clusters have no texts, or no groups.
    """

    attract = True
