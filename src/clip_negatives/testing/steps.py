"""Steps of a loss made for checks: what a weighting makes of clusters in blobs, and what a batch then loses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_negatives.anchors import AnchorLoss
from clip_negatives.interfaces import LossTerms
from clip_negatives.loss import NegativesClipLoss
from clip_negatives.sampling import epoch_generator
from clip_negatives.testing.blobs import make_blobs
from clip_negatives.testing.subject import Subject

N, B, DIM = 240, 32, 16
"""Samples, batch size and size of the embeddings."""

SCALE = 14.3
"""The logit scale that open_clip starts from."""

BIAS = -10.0
"""The logit bias that SigLIP starts from; a softmax does not feel it."""

Terms = LossTerms | AnchorLoss


def make_terms(plugin: Subject) -> Any:
    """Return what the weighting makes of `make_blobs` of N samples."""
    return plugin.create()(make_blobs(N))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return unit-norm features of a batch as a model in training gives them: pairs are nearer than others."""
    generator = epoch_generator(seed, 1)
    x = torch.randn(B, DIM, generator=generator)
    return F.normalize(x, dim=1), F.normalize(x + torch.randn(B, DIM, generator=generator), dim=1)


def value(
    terms: Any, x: Tensor | None = None, y: Tensor | None = None, *, scale: float = SCALE, index: Tensor | None = None
) -> Tensor:
    """Return the loss of a batch."""
    if x is None or y is None:
        x, y = batch()
    where = batch_index()[: len(x)] if index is None else index
    bias = torch.tensor(BIAS) if isinstance(terms, AnchorLoss) else None
    loss: Tensor = NegativesClipLoss(terms=terms)(x, y, torch.tensor(scale), bias, index=where)
    return loss


def batch_index() -> Tensor:
    """Return the samples of a batch: every seventh, so that clusters and groups mix."""
    return torch.arange(B) * 7 % N
