"""A counting sort of samples by their cluster labels, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip_negatives_plugins.cluster_similarity.reliable import SAMPLES_AT_ONCE


def sorted_by_label(samples: Tensor, spare: Tensor, parts: Sequence[tuple[Tensor, int]], n_keys: int) -> Tensor:
    """Return the samples stably sorted by a key. Only the input and the result take O(N) memory.

    Args:
        samples: samples to sort, int32 or int64.
        spare: all other samples of the data set.
        parts: labels, shape (N,), and a factor each; the key of a sample is the sum of its labels times the factors.
        n_keys: number of keys.

    Examples:
        >>> labels = torch.tensor([1, 0, 1, 0])
        >>> sorted_by_label(torch.tensor([2, 1, 0]), torch.tensor([3]), [(labels, 1)], 2)
        tensor([1, 2, 0])
    """

    def keys(index: Tensor) -> Tensor:
        return torch.stack([labels[index] * factor for labels, factor in parts]).sum(dim=0)

    # Count the labels of all samples, in the order of the data because that is faster, and subtract the spare samples.
    counts = torch.zeros(n_keys, dtype=torch.int64)
    for blocks in zip(*(labels.split(SAMPLES_AT_ONCE) for labels, _ in parts), strict=True):
        block_keys = torch.stack([block * factor for block, (_, factor) in zip(blocks, parts, strict=True)]).sum(dim=0)
        counts += block_keys.bincount(minlength=n_keys)
    counts -= keys(spare.long()).bincount(minlength=n_keys)
    next_place = counts.cumsum(0) - counts
    result = torch.empty_like(samples)
    for block in samples.split(SAMPLES_AT_ONCE):
        key, order = keys(block.long()).sort(stable=True)
        present, sizes = key.unique_consecutive(return_counts=True)
        before = sizes.cumsum(0) - sizes
        result[(next_place[present] - before).repeat_interleave(sizes) + torch.arange(len(block))] = block[order]
        next_place[present] += sizes
    return result
