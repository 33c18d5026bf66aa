"""What tells false negatives in a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_negatives.artifacts import ClustersFolder


def codes(values: Sequence[str]) -> Tensor:
    """Return a number for each value, equal for equal values, int64, shape (N,); an empty value equals no other.

    Examples:
        >>> codes(["shoe", "", "hat", "", "shoe"])
        tensor([2, 3, 1, 4, 2])
    """
    array = np.asarray(values)
    number = np.unique(array, return_inverse=True)[1].astype(np.int64)
    unknown = (array == "").nonzero()[0]
    number[unknown] = number.max(initial=0) + 1 + np.arange(len(unknown))
    return torch.from_numpy(number)


def truth_of(folder: ClustersFolder) -> tuple[str, Tensor]:
    """Return what tells false negatives in these data best, "group" or "text", and its codes, int64, shape (N,)."""
    kind = "group" if "group" in folder.samples.column_names else "text"
    return kind, codes(folder.samples[kind].to_pylist())


def truths_of(folder: ClustersFolder) -> dict[str, Tensor]:
    """Return the codes of each that the data have: "text" and, with groups, "group"."""
    present = [kind for kind in ("text", "group") if kind in folder.samples.column_names]
    return {kind: codes(folder.samples[kind].to_pylist()) for kind in present}
