"""What tells false negatives in a data set."""

from __future__ import annotations

from torch import Tensor

from clip_negatives.artifacts import ClustersFolder, codes


def truth_of(folder: ClustersFolder) -> tuple[str, Tensor]:
    """Return what tells false negatives in these data best, "group" or "text", and its codes, int64, shape (N,)."""
    kind = "group" if "group" in folder.samples.column_names else "text"
    return kind, codes(folder.samples[kind])


def truths_of(folder: ClustersFolder) -> dict[str, Tensor]:
    """Return the codes of each that the data have: "text" and, with groups, "group"."""
    present = [kind for kind in ("text", "group") if kind in folder.samples.column_names]
    return {kind: codes(folder.samples[kind]) for kind in present}
