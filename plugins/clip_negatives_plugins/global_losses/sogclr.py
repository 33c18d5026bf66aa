"""SogCLR: contrast with all samples of the data, estimated by a moving average for each sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clip_negatives.anchor_loss import AnchorLoss
from clip_negatives.anchors import Anchors
from clip_negatives.host.option_checks import check_number
from clip_negatives.interfaces import Clusters


class SogClr:
    """Estimate the contrast with all samples by a moving average for each sample, so that small batches train like large ones.

    With ``g_i = mean over j != i of exp((s_ij - s_ii) scale)`` and ``u_i = (1 - gamma) u_i + gamma sg(g_i)``, where sg stops
    the gradient: ``loss_i = g_i / sg(u_i) / scale``. u is a buffer: checkpoints store it, and re-clustering keeps it.

    * Source: SogCLR (Yuan et al., 2022, arXiv:2202.12387), in the form of FastCLIP v1 (Wei et al., 2024, arXiv:2407.01445)
      for images and texts, with a constant gamma and a constant temperature.
    * Our choice: the model's logit_scale without a gradient, or a given temperature; the value of gamma; u_i starts at g_i
      instead of 0.
    * Sign: none; the loss estimates the unweighted contrast, by the live similarity.

    Args:
        gamma: weight of the new estimate, above 0, at most 1; 1 ignores past steps.
        temperature: above 0; none uses the model's temperature.
    """

    def __init__(self, gamma: float = 0.8, temperature: float | None = None) -> None:
        check_number("gamma", gamma, above=0, at_most=1)
        check_number("temperature", temperature, above=0)
        self.gamma, self.temperature = gamma, temperature

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss, with a state for every sample."""
        return _SogClrLoss(clusters.n_samples, self.gamma, self.temperature)


class _SogClrLoss(AnchorLoss):
    """Loss with a state: log u of every image and text, -inf before it is seen; u itself could overflow."""

    def __init__(self, n_samples: int, gamma: float, temperature: float | None) -> None:
        super().__init__()
        self.n_samples, self.gamma, self.temperature = n_samples, gamma, temperature
        for modality in ("image", "text"):
            self.register_buffer(modality, torch.full((n_samples,), -torch.inf))

    def forward(self, anchors: Anchors) -> Tensor:
        scale = anchors.scale.detach() if self.temperature is None else torch.as_tensor(1 / self.temperature)
        own = anchors.cosines.diagonal(anchors.samples.offset)
        logits = scale * (anchors.cosines - own[:, None])
        count = anchors.logits.shape[1] - 1
        if count == 0:
            return 0.0 * own
        log_g = logits.masked_fill(~anchors.negatives, -torch.inf).logsumexp(1) - math.log(count)
        state = self.get_buffer(anchors.modality)
        before = state[anchors.samples.index].to(log_g.dtype)
        kept = before + math.log1p(-self.gamma) if self.gamma < 1 else before - torch.inf
        mixed = torch.logaddexp(kept, log_g.detach() + math.log(self.gamma))
        log_u = mixed.where(before > -torch.inf, log_g.detach())
        anchors.remember(state, log_u)
        return (log_g - log_u).exp() / scale
