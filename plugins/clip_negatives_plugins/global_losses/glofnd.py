"""GloFND: a learned similarity threshold for each sample; negatives above it count as false negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors, info_nce, removed_above
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters

BETAS = (0.9, 0.98)
EPS = 1e-8
STATE = ("threshold", "first", "second", "sights")


class GloFnd:
    """Remove the most similar negatives of each sample, those above a learned threshold.

    ``b_ij = -inf`` if ``s_ij > lambda_i``. Each time sample i is seen, lambda_i falls by ``lr * Adam(alpha - mean over j != i
    of 1[s_ij > lambda_i])``. It converges to the quantile with a share alpha of the negatives above it. Every image and every
    text has its own lambda. lambda and the moments of Adam are buffers: checkpoints store them, and re-clustering keeps them.

    * Source: GloFND (Balmaseda et al., 2025, arXiv:2502.20612), lr 0.05, betas 0.9 and 0.98. Its script has alpha 1e-4 for
      millions of samples, and removes pairs after 15 epochs.
    * Our choice: alpha 0.01; pairs are removed after a sample was seen 3 times; lambda starts at 1; lambda is updated before
      it is used.
    * Sign: removes similar pairs, by the live similarity.

    Args:
        alpha: share of the negatives that is assumed to be false, 0 .. 1.
        lr: step size of lambda, in units of the cosine, above 0.
        after: number of times that a sample is seen before its threshold removes pairs, at least 0.
    """

    def __init__(self, alpha: float = 0.01, lr: float = 0.05, after: int = 3) -> None:
        check_number("alpha", alpha, at_least=0, at_most=1)
        check_number("lr", lr, above=0)
        check_number("after", after, at_least=0)
        self.alpha, self.lr, self.after = alpha, lr, after

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with a state for every sample."""
        return _GloFndLoss(clusters.n_samples, self)


class _GloFndLoss(AnchorLoss):
    """Loss with a state for every image and every text: threshold, both moments of Adam, number of its steps."""

    def __init__(self, n_samples: int, options: GloFnd) -> None:
        super().__init__()
        self.n_samples, self.options = n_samples, options
        for modality in ("image", "text"):
            for name in STATE:
                self.register_buffer(f"{modality}_{name}", torch.full((n_samples,), float(name == "threshold")))

    def forward(self, anchors: Anchors) -> Tensor:
        live = anchors.cosines.detach()
        threshold, steps = self._learn(anchors, live)
        limits = threshold.where(steps > self.options.after, torch.inf)
        return info_nce(anchors, log_weights=removed_above(live, limits[:, None]))

    @torch.no_grad()
    def _learn(self, anchors: Anchors, live: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step of Adam for each anchor; return its threshold and its number of steps."""
        buffers = [self.get_buffer(f"{anchors.modality}_{name}") for name in STATE]
        threshold, first, second, steps = (buffer[anchors.samples.index].to(live) for buffer in buffers)
        own_above = live.diagonal(anchors.samples.offset) > threshold
        n_above = torch.gt(live, threshold[:, None], out=torch.empty_like(live)).sum(1) - own_above.to(live)
        above = n_above / max(live.shape[1] - 1, 1)
        slope = self.options.alpha - above
        steps = steps + 1
        first = BETAS[0] * first + (1 - BETAS[0]) * slope
        second = BETAS[1] * second + (1 - BETAS[1]) * slope.square()
        step = first / (1 - BETAS[0] ** steps) / ((second / (1 - BETAS[1] ** steps)).sqrt() + EPS)
        threshold = (threshold - self.options.lr * step).clamp(-1.0, 1.0)
        for buffer, values in zip(buffers, (threshold, first, second, steps), strict=True):
            anchors.remember(buffer, values)
        return threshold, steps
