"""What the false-negative meter shows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Suspects:
    """Say how common one kind of suspect pair is among the incorrect pairs of uniformly drawn batches.

    Attributes:
        kind: what the two samples of such a pair share.
        share: share of all pairs of two different samples, 0 .. 1.
        per_anchor: expected number in a batch for each sample, ``share * (batch_size - 1)``.
        exact: whether all pairs were counted, or `SAMPLED_PAIRS` of them.
    """

    kind: str
    share: float
    per_anchor: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Treatment:
    """Say what a sampler and a weighting make of the pairs, measured on batches that the sampler composes.

    Attributes:
        sampler: as given.
        weighting: as given.
        truth: what counts as a false negative here: the same "group" or the same "text".
        per_anchor: false negatives of a sample in a batch.
        per_anchor_kept: those of them that the weighting does not remove.
        removed_share: share of all incorrect pairs that the weighting removes, 0 .. 1.
        mean_weight: mean of ``exp(b)`` over the incorrect pairs that are kept, before any normalisation; 0 if none is.
        false_weight: mean of ``exp(b)`` over the false negatives, removed ones counting 0, as a multiple of
            `mean_weight`: 1 where they count as any other pair, 0 where none is left; None where there were none.
        batches: batches that this is measured on.
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
    """Hold what the meter shows.

    Attributes:
        n_samples: N.
        batch_size: B, of all processes together.
        suspects: by kind.
        treatments: in-batch negatives first, then the chosen method; each by what counts as a false negative.
    """

    n_samples: int
    batch_size: int
    suspects: tuple[Suspects, ...]
    treatments: tuple[Treatment, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return dataclasses.asdict(self)
