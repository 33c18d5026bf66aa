"""What samples of one group are to each other."""

from __future__ import annotations

from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters, LossTerms

KINDS = ("text", "group", "image_cluster", "text_cluster")


class IdMask:
    """Leave the pairs of two samples of one group out of the loss.

    ``b_ij = -inf`` where ``y_i == y_j``, for i other than j. What users of CLIP ask for first, where captions repeat.
    Sign: removes what is known to be the same, by no similarity (or, by clusters, by the frozen one).

    Args:
        by: what says that samples are of one group: "text" (equal texts), "group" (the group column of the data),
            "image_cluster" or "text_cluster".

    Raises:
        InputError: `by` is none of these, or the data do not say.
    """

    attract = False

    def __init__(self, by: str = "text") -> None:
        if by not in KINDS:
            raise InputError(f"Expected by to be one of {', '.join(KINDS)}, got {by!r}.")
        self.by = by

    def __call__(self, clusters: Clusters) -> LossTerms:
        """Return terms with the groups."""
        return LossTerms(groups=self._groups(clusters), attract=self.attract)

    def _groups(self, clusters: Clusters) -> Tensor:
        if self.by in ("image_cluster", "text_cluster"):
            return (clusters.image if self.by == "image_cluster" else clusters.text).labels
        found = clusters.texts if self.by == "text" else clusters.groups
        if found is None:
            what = "a group column: prepare with --group-column" if self.by == "group" else "their texts"
            raise InputError(f"Expected clusters of data with {what}, for by={self.by}, got none.")
        return found


class MultiPositive(IdMask):
    """Take all samples of one group as positives of each other.

    ``T_ij = 1[y_i == y_j] / |P_i|`` in both directions, P_i the samples of i's group in the batch: the targets of SupCon
    (Khosla et al., 2020, arXiv:2004.11362, its L_out) and UniCL (Yang et al., 2022, arXiv:2204.03610). The positives also stand
    in the denominator, as in both. Sign: attracts what is known to be the same.

    Args:
        by: see `IdMask`.

    Raises:
        InputError: as `IdMask`.
    """

    attract = True
