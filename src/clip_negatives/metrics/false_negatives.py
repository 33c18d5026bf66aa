"""Counts of false negatives in batches, before and after a weighting."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.kernels import log_weights

CHUNK = 512  # number of images compared with all texts of the batch at a time


def count_false_negatives(groups: Tensor, terms: LossTerms | None = None, anchors: Tensor | None = None) -> Tensor:
    """Return the counts of a batch; add the counts of several batches.

    Args:
        groups: group of each sample, int64, shape (B,); an incorrect pair within a group is a false negative.
        terms: log-weights of the batch; -inf removes a pair. None removes nothing.
        anchors: positions in the batch of the images to count, int64, shape (A,); None counts all.

    Returns:
        Float64, shape (8,), for `false_negative_figures`.

    Raises:
        InputError: the terms do not have B samples.
    """
    n = len(groups)
    if terms is not None and terms.n_samples not in (None, n):
        raise InputError(
            f"Expected terms of {n} samples, one for each group, got {terms.n_samples}. Use the terms of the batch: "
            "terms.take(index)."
        )
    anchors = torch.arange(n, device=groups.device) if anchors is None else anchors
    total = torch.tensor([1, len(anchors), len(anchors) * (n - 1), 0, 0, 0, 0, 0], dtype=torch.float64).to(groups.device)
    for part in anchors.split(CHUNK):
        own = part[:, None]
        false = (groups[own] == groups[None, :]).scatter_(1, own, False)
        b = torch.zeros(false.shape, device=false.device)
        if terms is not None and terms.n_samples is not None:
            b = log_weights.block(terms.take(part), terms, torch.float32)
        removed = (b == -torch.inf).scatter_(1, own, False)
        weight = b.exp_().scatter_(1, own, 0.0)
        counts = false.count_nonzero(), removed.count_nonzero(), (false & ~removed).count_nonzero()
        weights = weight.sum(dtype=torch.float64), torch.where(false, weight, 0.0).sum(dtype=torch.float64)
        # Do not read a value here: that would wait for the GPU.
        total[3:] += torch.stack([value.to(total) for value in (*counts, *weights)])
    return total


def false_negative_figures(counts: Tensor) -> dict[str, Tensor]:
    """Return figures from the counts of `count_false_negatives`, float64 scalars.

    * ``per_anchor``: false negatives for each image; ``per_anchor_kept``: false negatives that are not removed, at any weight.
    * ``removed_share``: removed share of all incorrect pairs, 0 .. 1.
    * ``removed_false_share``: removed share of the false negatives, 0 .. 1.
    * ``mean_weight``: mean of ``exp(b)`` over the kept pairs, before any normalisation; 0 if none is kept.
    * ``false_weight``: mean weight of a false negative (removed = 0) relative to ``mean_weight``; NaN without false negatives.
    * ``batches``: number of batches.

    Examples:
        >>> counts = count_false_negatives(torch.tensor([0, 0, 1, 2]))
        >>> false_negative_figures(counts)["per_anchor"]
        tensor(0.5000, dtype=torch.float64)
    """
    batches, anchors, pairs, false, removed, false_kept, weight, false_weight = counts
    mean_weight = weight / (pairs - removed).clamp(min=1)
    return {
        "per_anchor": false / anchors.clamp(min=1),
        "per_anchor_kept": false_kept / anchors.clamp(min=1),
        "removed_share": removed / pairs.clamp(min=1),
        "removed_false_share": (false - false_kept) / false.clamp(min=1),
        "mean_weight": mean_weight,
        "false_weight": false_weight / false / mean_weight,
        "batches": batches,
    }
