"""Linear heads: a matrix for each modality, which maps frozen features to a common space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.07  # initial value of a learned temperature, as in CLIP
SIGMOID_TEMPERATURE, SIGMOID_BIAS = 0.1, -10.0  # initial values for a sigmoid loss, as in SigLIP
MAX_LOGIT_SCALE = 100.0  # as in CLIP
EMBEDDED_AT_ONCE = 8192  # rows


class LinearHeads(nn.Module):
    """Two linear maps of frozen features to one space, with the temperature and the bias of a contrastive loss.

    The image embedding equals ``F.normalize(x @ heads.image, dim=1)``, that of a text ``F.normalize(y @ heads.text, dim=1)``.

    Args:
        sizes: lengths of an image feature and of a text feature.
        dim: length of an embedding.
        seed: seed of the initial weights.
        temperature: fixed temperature; None learns it.
        sigmoid: whether the loss is a sigmoid loss, which has a bias.
        dropout: probability that an entry of a frozen feature is 0 in a training step; the other entries are scaled up.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        dim: int,
        *,
        seed: int = 0,
        temperature: float | None = None,
        sigmoid: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.image, self.text = (nn.Parameter(torch.randn(size, dim, generator=generator) / dim**0.5) for size in sizes)
        start = temperature or (SIGMOID_TEMPERATURE if sigmoid else TEMPERATURE)
        self.log_scale = nn.Parameter(-torch.tensor(start).log(), requires_grad=temperature is None)
        self.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS)) if sigmoid else None
        self.dropout, self._generator = dropout, generator

    @property
    def temperature(self) -> float:
        """Return the temperature."""
        return float((-self.log_scale.detach()).exp())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the parameter groups of an optimizer; only matrices have weight decay."""
        scalars = [self.log_scale, *([] if self.bias is None else [self.bias])]
        return [{"params": [self.image, self.text], "weight_decay": weight_decay}, {"params": scalars, "weight_decay": 0.0}]

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of image features (B, D_image) and text features (B', D_text), unit norm."""
        if self.training and self.dropout:
            images, texts = self._dropped(images), self._dropped(texts)
        return F.normalize(images @ self.image, dim=1), F.normalize(texts @ self.text, dim=1)

    @torch.no_grad()
    def embed(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings without dropout or gradients, block by block; features may be float16."""
        return _embedded(images, self.image), _embedded(texts, self.text)

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keep ``exp(log_scale)`` within 1 .. `MAX_LOGIT_SCALE`, as open_clip does after each step."""
        self.log_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))

    def _dropped(self, features: Tensor) -> Tensor:
        """Return the features with random entries set to 0; the probability is rounded to a multiple of 2^-16.

        16 random bits decide about each entry: this takes a third of the time of a random float32 for each.
        """
        n_dropped = min(round(self.dropout * 2**16), 2**16 - 1)  # of 2^16 values
        words = torch.empty(-(-features.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=self._generator)
        bits = words.view(torch.int16)[: features.numel()].view(features.shape)
        kept = torch.ge(bits, n_dropped - 2**15, out=torch.empty_like(features))
        return kept.mul_(features).mul_(2**16 / (2**16 - n_dropped))


def _embedded(features: Tensor, matrix: Tensor) -> Tensor:
    blocks: Sequence[Tensor] = features.split(EMBEDDED_AT_ONCE)
    return torch.cat([F.normalize(block.float() @ matrix, dim=1) for block in blocks])
