"""The nearest samples by frozen features."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters

MODALITIES = {"image": ("image",), "text": ("text",), "both": ("image", "text")}


def frozen_vectors(clusters: Clusters | None, by: str) -> Tensor:
    """Return unit-norm vectors whose inner product is the frozen similarity, float32, shape (N, D).

    For "both" it is the mean of the cosines of images and of texts.

    Raises:
        InputError: `by` is unknown, or the clusters have no such features.
    """
    if by not in MODALITIES:
        raise InputError(f"Expected by to be one of {', '.join(MODALITIES)}, got {by!r}.")
    if clusters is None:
        raise InputError("Expected clusters, which this sampler needs, got none. Prepare the data first.")
    parts = [clusters.features_of(name, f"by={by}").float() for name in MODALITIES[by]]
    return F.normalize(torch.cat([F.normalize(part, dim=1) for part in parts], dim=1), dim=1)


def ranked_neighbours(vectors: Tensor, first: int, last: int) -> Tensor:
    """Return the neighbours of each sample from rank `first` to `last`, int64, shape (N, last - first + 1).

    Rank 1 is the nearest other sample. Exact, with faiss: N^2 D operations and N x last memory. Where there are fewer than
    `last` others, places are -1.
    """
    import faiss

    rows: np.ndarray = np.ascontiguousarray(vectors.numpy())
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    wanted = min(last + 1, len(rows))
    found = torch.from_numpy(index.search(rows, wanted)[1])
    # A duplicate may stand before the sample itself: take it out wherever it is, else the last.
    own = found == torch.arange(len(rows))[:, None]
    own[~own.any(1), -1] = True
    others = found[~own].view(len(rows), wanted - 1)
    missing = others.new_full((len(rows), max(0, last - others.shape[1])), -1)
    return torch.cat([others, missing], dim=1)[:, first - 1 :]
