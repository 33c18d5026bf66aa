"""Nearest neighbours by live features, and runs of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.clustering.options import load_faiss

QUERIES = 1024  # samples whose neighbours are searched at a time


def known(features: Tensor) -> Tensor:
    """Return which samples have features, bool, shape (N,); the others have zeros."""
    return (features != 0).any(dim=2).all(dim=1)


def live_neighbours(features: Tensor, samples: Tensor, window: int, limit: float) -> Tensor:
    """Return the nearest other samples of some samples, nearest first, without near-duplicates.

    With one modality, the similarity is the cosine. With two, it is the mean of the cosines of the two incorrect pairs
    (image i, text j) and (image j, text i). The search is exact: M N D operations.

    Args:
        features: unit norm or zeros, shape (N, 1, D), or (N, 2, D) with image and text.
        samples: samples with features, int64, shape (M,).
        window: number of neighbours.
        limit: samples whose cosine is at least this, in the mean of the modalities, are near-duplicates.

    Returns:
        int64, shape (M, window + 1), or fewer columns; -1 instead of near-duplicates and of the sample itself.
    """
    if len(samples) == 0:
        return samples.view(0, 1)
    faiss = load_faiss()
    with_features = known(features).nonzero().flatten()
    index = faiss.IndexFlatIP(features[0].numel())
    for part in with_features.split(QUERIES):  # in float32 only in the index
        index.add(features[part].flatten(1).float().numpy())
    parts = []
    for part in samples.split(QUERIES):
        own = features[part].float()
        queries = own.flip(1).flatten(1)  # images search among texts, texts among images
        nearest = torch.from_numpy(index.search(queries.numpy(), min(window + 1, len(with_features)))[1])
        neighbours = with_features[nearest]
        cosines = torch.einsum("msd,mksd->mk", own, features[neighbours].float()) / features.shape[1]
        itself = neighbours == part[:, None]
        itself[~itself.any(dim=1), -1] = True  # it is not among the window + 1 nearest: drop the last of them
        parts.append(neighbours.masked_fill(itself | (cosines >= limit), -1))
    return torch.cat(parts)


def runs(seeds: Tensor, neighbours: Tensor, size: int, n_samples: int) -> Tensor:
    """Return the run of each sample, int64, shape (N,); each sample without a run gets a run of its own.

    Run r begins with seed r. Then the nearest neighbours of all seeds join, then the second nearest, and so on, if they have no
    run yet and the run has fewer than `size` samples. If several runs want a sample, the first run gets it.

    Args:
        seeds: samples, all different, int64, shape (R,).
        neighbours: neighbours of each seed, nearest first, -1 for none, int64, shape (R, K).
        size: largest number of samples of a run.
        n_samples: N.

    Examples:
        >>> runs(torch.tensor([0, 3]), torch.tensor([[3, 1], [1, 2]]), 2, 5)
        tensor([0, 1, 2, 1, 3])
    """
    run = torch.full((n_samples,), -1)
    run[seeds] = torch.arange(len(seeds))
    sizes = torch.ones(len(seeds), dtype=torch.int64)
    for samples in neighbours.T:
        wanting = ((samples >= 0) & (run[samples] < 0) & (sizes < size)).nonzero().flatten()
        wanted = samples[wanting]
        first = torch.full((n_samples,), len(seeds)).scatter_reduce(0, wanted, wanting, "amin")
        joined = first[wanted] == wanting
        run[wanted[joined]] = wanting[joined]
        sizes[wanting[joined]] += 1
    alone = (run < 0).nonzero().flatten()
    run[alone] = torch.arange(len(seeds), len(seeds) + len(alone))
    return run
