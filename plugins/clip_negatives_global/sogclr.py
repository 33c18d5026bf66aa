"""The contrast with all samples of the data, estimated by a moving average for each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clip_negatives.anchors import AnchorLoss, Anchors
from clip_negatives.errors import InputError
from clip_negatives.interfaces import Clusters


class SogClr:
    """Contrast each sample with a moving average over the steps in which it was seen, so that small batches do as large ones.

    With ``g_i = mean over j != i of exp((s_ij - s_ii) scale)`` and ``u_i = (1 - gamma) u_i + gamma sg(g_i)``, u_i the
    sample's own and sg stopping the gradient, ``loss_i = g_i / (sg(u_i) + eps) / scale``. Source: SogCLR (Yuan et al., 2022,
    arXiv:2202.12387); the form for images and texts is that of FastCLIP v1 (Wei et al., 2024, arXiv:2407.01445) with a
    constant gamma. There the temperature is a constant; here it is the model's logit_scale, through which no gradient goes,
    or the one that is given. The value of gamma is our choice, and at its first sight u_i is g_i, not 0. Sign: none of its
    own: a better estimate of the same contrast.

    u is a buffer: it is checkpointed and survives a new clustering.

    Args:
        gamma: weight of the new estimate, over 0, at most 1; 1 remembers nothing.
        temperature: over 0; None takes the model's.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(self, gamma: float = 0.8, temperature: float | None = None) -> None:
        if not 0 < gamma <= 1:
            raise InputError(f"Expected gamma over 0 and at most 1, got {gamma}.")
        if temperature is not None and not 0 < temperature < float("inf"):
            raise InputError(f"Expected a temperature over 0, got {temperature}.")
        self.gamma, self.temperature = gamma, temperature

    def __call__(self, clusters: Clusters) -> AnchorLoss:
        """Return the loss with room for every sample."""
        return _Remembering(clusters.n_samples, self.gamma, self.temperature)


class _Remembering(AnchorLoss):
    """Hold log u of every image and every text, -inf before its first sight: logarithms, as the sums overflow."""

    image: Tensor
    text: Tensor

    def __init__(self, n_samples: int, gamma: float, temperature: float | None) -> None:
        super().__init__()
        self.n_samples, self.gamma, self.temperature = n_samples, gamma, temperature
        for modality in ("image", "text"):
            self.register_buffer(modality, torch.full((n_samples,), -torch.inf))

    def forward(self, anchors: Anchors) -> Tensor:
        scale = anchors.scale.detach() if self.temperature is None else torch.as_tensor(1 / self.temperature)
        own = anchors.cosines.diagonal(anchors.where.offset)
        logits = scale * (anchors.cosines - own[:, None])
        count = anchors.logits.shape[1] - 1
        if count == 0:
            return 0.0 * own
        log_g = logits.masked_fill(~anchors.negatives, -torch.inf).logsumexp(1) - math.log(count)
        state = self.image if anchors.modality == "image" else self.text
        before = state[anchors.where.index].to(log_g.dtype)
        mixed = torch.logaddexp(
            before + math.log1p(-self.gamma) if self.gamma < 1 else before - torch.inf, log_g.detach() + math.log(self.gamma)
        )
        log_u = mixed.where(before > -torch.inf, log_g.detach())
        anchors.remember(state, log_u)
        return (log_g - log_u).exp() / scale
