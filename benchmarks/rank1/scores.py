"""Rank@k of a run, and the gain over the baseline with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LOW, HIGH, SAMPLES = 2.5, 97.5, 2000  # percentiles of the interval, samples of the bootstrap


def ranks(similarity: Tensor) -> list[int]:
    """Return the rank of the own entry of each row, 1 the best; equal entries count as before it."""
    own = similarity.diagonal()[:, None]
    return ((similarity >= own).sum(1)).tolist()


def rank_at(outcome: dict[str, Any], k: int, direction: str = "text_to_image") -> float:
    """Return Rank@k of a run, 0 .. 1."""
    return sum(rank <= k for rank in outcome[direction]) / len(outcome[direction])


def interval(method: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]], k: int, direction: str) -> dict[str, float]:
    """Return the relative gain in Rank@k over the baseline with a 95 % bootstrap interval, over seeds and queries, paired."""
    ours, theirs = ((torch.tensor([one[direction] for one in runs]) <= k).float() for runs in (method, baseline))
    generator = torch.Generator().manual_seed(0)
    seeds, queries = (_resampled(n, generator) for n in ours.shape)
    drawn, drawn_baseline = (((seeds @ hits) * queries).sum(1) for hits in (ours, theirs))
    low, high = (drawn / drawn_baseline - 1).quantile(torch.tensor([LOW, HIGH]) / 100).tolist()
    return {"gain": float(ours.mean() / theirs.mean() - 1), "low": low, "high": high}


def _resampled(n: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n is drawn in n draws with returns, for each sample of the bootstrap, shape (samples, n)."""
    draws = torch.randint(n, (SAMPLES, n), generator=generator)
    return torch.zeros(SAMPLES, n).scatter_add_(1, draws, torch.ones(SAMPLES, n))
