"""The figures of the false-negative meter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Suspects:
    """Frequency of one kind of suspect pair among the incorrect pairs of uniform random batches.

    Attributes:
        kind: what the two samples have in common.
        share: share of all pairs of two different samples, 0 .. 1.
        per_anchor: expected number for each sample in a batch, ``share * (batch_size - 1)``.
        exact: True if all pairs were counted, False if `SAMPLED_PAIRS` random pairs.
    """

    kind: str
    share: float
    per_anchor: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Treatment:
    """False negatives with a sampler and a weighting, measured on batches of the sampler.

    Attributes:
        sampler: spec of the sampler.
        weighting: spec of the weighting.
        truth: definition of a false negative: the same "group", or the same "text".
        per_anchor: false negatives of a sample in a batch.
        per_anchor_kept: false negatives that the weighting does not remove.
        removed_share: share of all incorrect pairs that the weighting removes, 0 .. 1.
        mean_weight: mean of ``exp(b)`` over the kept pairs, before any normalisation; 0 if none is kept.
        false_weight: mean weight of a false negative (removed = 0) relative to `mean_weight`: 1 = no change, 0 = all
            removed; None without false negatives.
        batches: number of batches measured.
    """

    sampler: str
    weighting: str
    truth: str
    per_anchor: float
    per_anchor_kept: float
    removed_share: float
    mean_weight: float
    false_weight: float | None
    batches: int


@dataclass(frozen=True, slots=True)
class Reading:
    """All figures of the meter; `treatments` lists in-batch negatives, then the method, once for each definition of truth."""

    n_samples: int
    batch_size: int
    suspects: tuple[Suspects, ...]
    treatments: tuple[Treatment, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the reading as JSON data."""
        return dataclasses.asdict(self)
