"""A learned threshold for each sample over which a negative is taken for a false one."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors, info_nce
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters

BETAS = (0.9, 0.98)
EPS = 1e-8


class GloFnd:
    """Drop the most similar share of all negatives of a sample, found by a threshold of its own that is learned on the way.

    ``b_ij = -inf`` where ``s_ij > lambda_i``; lambda_i goes down by ``lr * Adam(alpha - mean over j != i of 1[s_ij >
    lambda_i])`` each time that i is seen, so that it comes to rest where the share alpha lies above it: one quantile for
    every image and every text. Source: GloFND (Balmaseda et al., 2025, arXiv:2502.20612), lr 0.05, betas 0.9 and 0.98; its
    script has alpha 1e-4 for millions of samples and starts to drop after 15 epochs. Our choice: alpha 0.01, dropping after 3
    sights of a sample, lambda = 1 at first, and the new lambda decides. Sign: removes what is similar, by the live
    similarity.

    lambda and the moments are buffers: they are checkpointed and survive a new clustering.

    Args:
        alpha: share of the negatives that is taken to be false, 0 .. 1.
        lr: step of lambda, over 0; cosines.
        after: sights of a sample before its threshold drops anything.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(self, alpha: float = 0.01, lr: float = 0.05, after: int = 3) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"Expected alpha within 0 .. 1, got {alpha}.")
        if not 0 < lr < float("inf") or after < 0:
            raise InputError(f"Expected lr over 0 and after of at least 0, got {lr} and {after}.")
        self.alpha, self.lr, self.after = alpha, lr, after

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with room for every sample."""
        return _Learned(clusters.n_samples, self.alpha, self.lr, self.after)


class _Learned(AnchorLoss):
    """Hold threshold, first and second moment and number of sights of every image and every text."""

    def __init__(self, n_samples: int, alpha: float, lr: float, after: int) -> None:
        super().__init__()
        self.n_samples, self.alpha, self.lr, self.after = n_samples, alpha, lr, after
        for modality in ("image", "text"):
            self.register_buffer(f"{modality}_threshold", torch.ones(n_samples))
            for moment in ("first", "second", "sights"):
                self.register_buffer(f"{modality}_{moment}", torch.zeros(n_samples))

    def forward(self, anchors: Anchors) -> Tensor:
        live, negatives = anchors.cosines.detach(), anchors.negatives
        threshold, sights = self._learn(anchors, live, negatives)
        false = (live > threshold[:, None]) & (sights > self.after)[:, None]
        return info_nce(anchors, log_weights=torch.zeros_like(live).masked_fill(false, -torch.inf))

    @torch.no_grad()
    def _learn(self, anchors: Anchors, live: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step of Adam for each anchor; return its threshold and how often it was seen."""
        state = {name: self.get_buffer(f"{anchors.modality}_{name}") for name in ("threshold", "first", "second", "sights")}
        threshold, first, second, sights = (each[anchors.where.index].to(live) for each in state.values())
        above = ((live > threshold[:, None]) & negatives).sum(1) / negatives.sum(1).clamp(min=1)
        slope = self.alpha - above
        sights = sights + 1
        first = BETAS[0] * first + (1 - BETAS[0]) * slope
        second = BETAS[1] * second + (1 - BETAS[1]) * slope.square()
        step = first / (1 - BETAS[0] ** sights) / ((second / (1 - BETAS[1] ** sights)).sqrt() + EPS)
        threshold = (threshold - self.lr * step).clamp(-1.0, 1.0)
        for each, values in zip(state.values(), (threshold, first, second, sights), strict=True):
            anchors.remember(each, values)
        return threshold, sights
