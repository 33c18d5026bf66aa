"""How many incorrect pairs of a batch are in truth correct, and what a weighting makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import log_weights

CHUNK = 1024
"""Samples of a batch that are compared with the whole batch at a time."""


class FalseNegatives(Metric):
    """Count the incorrect pairs of batches that are in truth correct, before and after a weighting.

    `compute` tells, over all batches: ``per_anchor``, false negatives for each image; ``per_anchor_kept``, those that
    the terms do not remove; ``removed_share``, removed of all incorrect pairs, and ``removed_false_share``, removed of
    the false ones, both 0 .. 1; ``mean_weight`` of the pairs that are kept, before any normalisation; ``false_weight``, the
    mean weight of a false one, a removed one counting 0, as a multiple of it: 1 where it counts as any other, NaN where there
    is none; ``batches``. Pairs whose weight is only lowered count as kept.

    Examples:
        >>> metric = FalseNegatives()
        >>> metric.update(torch.tensor([0, 0, 1, 2]))
        >>> metric.compute()["per_anchor"]
        tensor(0.5000, dtype=torch.float64)
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # batches, anchors, incorrect pairs, false ones, removed ones, false ones kept, weight of all, weight of the false ones
        self.add_state("counts", default=torch.zeros(8, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, groups: Tensor, terms: LossTerms | None = None, anchors: Tensor | None = None) -> None:
        """Take a batch.

        Args:
            groups: what each sample shows, int64, shape (B,); pairs of one group are false negatives.
            terms: log-weights of the batch; pairs with -inf are removed. None removes nothing.
            anchors: places in the batch of the images whose pairs are counted, int64, shape (A,); None counts those of all.

        Raises:
            InputError: the terms are of another number of samples.
        """
        n = len(groups)
        anchors = torch.arange(n, device=groups.device) if anchors is None else anchors
        if terms is not None and terms.n_samples is None:
            terms = None
        if terms is not None and terms.n_samples != n:
            raise InputError(
                f"Expected terms of {n} samples, one for each group, got {terms.n_samples}. Take those of the batch: "
                "terms.take(index)."
            )
        self.counts[:3] += torch.tensor([1, len(anchors), len(anchors) * (n - 1)]).to(self.counts)
        for part in anchors.split(CHUNK):
            own = part[:, None]
            same = (groups[own] == groups[None, :]).scatter(1, own, False)
            b = torch.zeros(same.shape, device=same.device)
            if terms is not None:
                b = log_weights.block(terms.take(part), terms, torch.float32)
            gone = (b == -torch.inf).scatter(1, own, False)
            weight = b.exp().scatter(1, own, 0.0)
            # Added where they are, as reading them would wait for the device.
            weights = (weight.sum(dtype=torch.float64), (weight * same).sum(dtype=torch.float64))
            found = same.sum(), gone.sum(), (same & ~gone).sum(), *weights
            self.counts[3:] += torch.stack([one.to(self.counts) for one in found])

    def compute(self) -> dict[str, Tensor]:
        """Return the figures by name, float64 scalars."""
        batches, anchors, pairs, false, removed, false_kept, weight, false_weight = self.counts
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
