"""Nearest samples by frozen similarity."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.clustering.options import load_faiss
from clip_negatives.host.option_checks import check_choice
from clip_negatives.interfaces import Clusters

Sides = Literal["image", "text", "both"]


def frozen_vectors(clusters: Clusters, by: Sides) -> Tensor:
    """Return unit-norm vectors whose inner product is the frozen similarity, float32, shape (N, D).

    For "both", the frozen similarity is the mean of image cosine and text cosine.

    Raises:
        InputError: `by` is unknown, or the clusters were prepared without features.
    """
    check_choice("by", by, get_args(Sides))
    names = ("image", "text") if by == "both" else (by,)
    parts = [clusters.features_of(name, f"by={by}").float() for name in names]
    return F.normalize(torch.cat([F.normalize(part, dim=1) for part in parts], dim=1), dim=1)


def ranked_neighbours(vectors: Tensor, first: int, last: int) -> Tensor:
    """Return the neighbours of each sample from rank `first` to `last`, padded with -1, int64, shape (N, last - first + 1).

    Rank 1 is the nearest other sample. The search is exact, by faiss: N^2 D operations, O(N last) memory.
    """
    faiss = load_faiss()
    rows: np.ndarray = np.ascontiguousarray(vectors.numpy())
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    n_nearest = min(last + 1, len(rows))
    nearest = torch.from_numpy(index.search(rows, n_nearest)[1])
    # A duplicate may come before the sample itself. If the sample is not listed at all, the last neighbour is dropped.
    own = nearest == torch.arange(len(rows))[:, None]
    own[~own.any(1), -1] = True
    neighbours = nearest[~own].view(len(rows), n_nearest - 1)
    missing = neighbours.new_full((len(rows), max(0, last - neighbours.shape[1])), -1)
    return torch.cat([neighbours, missing], dim=1)[:, first - 1 :]
