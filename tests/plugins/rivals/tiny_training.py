"""Training of a tiny model in plain torch, for weightings that see the step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_negatives.interfaces import Clusters
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.testing.blobs import make_blobs

N, B, EPOCHS = 96, 16, 2
STEPS = N // B


class Training:
    """A linear layer for each modality on the frozen features, the loss, and an optimizer of both."""

    def __init__(self, weighting: Any, clusters: Clusters | None = None) -> None:
        self.clusters = make_blobs(N) if clusters is None else clusters
        self.loss = NegativesClipLoss(terms=weighting(self.clusters))
        generator = torch.Generator().manual_seed(1)
        self.model = nn.ParameterList([torch.randn(16, 8, generator=generator) / 4 for _ in range(2)] + [torch.tensor(2.0)])
        self.optimizer = torch.optim.Adam([*self.model, *self.loss.parameters()], lr=0.01)

    def features(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        frozen = self.clusters.image_features[ids], self.clusters.text_features[ids]
        image, text = (F.normalize(rows @ layer, dim=1) for rows, layer in zip(frozen, self.model, strict=False))
        return image, text

    def call(self, ids: Tensor, step: int = 0, **options: Any) -> Tensor:
        samples = BatchSamples(ids=ids).at(step, STEPS * EPOCHS)
        return self.loss(*self.features(ids), self.model[2].exp(), samples=samples, **options)

    def epoch(self, epoch: int) -> list[float]:
        """Train an epoch and return the loss of each step."""
        order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).view(STEPS, B)
        losses = []
        for step, ids in enumerate(order):
            loss = self.call(ids, epoch * STEPS + step)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in (self.model, self.loss, self.optimizer)]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        for part, stored in zip((self.model, self.loss, self.optimizer), state, strict=True):
            part.load_state_dict(stored)
