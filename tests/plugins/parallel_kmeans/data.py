"""Features that the tests cluster."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from clip_negatives import catalogue
from clip_negatives.encoders import text_encoder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int = 600, k: int = 12, dim: int = 16, noise: float = 0.25) -> torch.Tensor:
    centres = F.normalize(torch.randn(k, dim, generator=generator(1)), dim=1)
    truth = torch.randint(k, (n,), generator=generator(2))
    return F.normalize(centres[truth] + noise * torch.randn(n, dim, generator=generator(3)), dim=1)


def titles() -> torch.Tensor:
    """Return features of the titles of the catalogue's test split, shape (1652, 32)."""
    texts = catalogue.load("test").column("text")
    encoder = text_encoder("tfidf:dim=32")
    assert encoder.learn is not None
    encoder.learn(texts)
    return F.normalize(encoder.encode(texts), dim=1)
