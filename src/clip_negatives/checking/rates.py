"""Number of false negatives that an image meets in a batch: the figure that `check`, `meter` and `inspect` report.

A false negative is an incorrect pair that is in truth correct: the two samples have the same group or the same text. If most
samples have no group, near-duplicates count too. Their number is an estimate, from at most 20,000 random samples: the sum of
`clip_negatives.heads.SimilarPairs.duplicate_probability`. On two parts of the catalogue, it was 45 % and 65 % of the true
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clip_negatives.checking.truth import GroundTruth, NeighbourSample

NEAR_DUPLICATES = "likely near-duplicates"  # name of this kind of pair
BATCH_SIZES = (256, 1024, 4096, 32_768)
MAX_VERDICT_BATCH_SIZE = 1024  # largest batch size of the verdict
NEGLIGIBLE, FEW = 0.01, 0.1  # false negatives of an image in this batch: below the first, there is nothing to do
MIN_CREDIBLE_ESTIMATE = 0.3  # a smaller one may mean none: it was 0.19 on a part of the catalogue without false negatives


@dataclass(frozen=True, slots=True)
class Rate:
    """Frequency of a kind of pair.

    Attributes:
        kind: what the two samples of a pair have in common.
        share: share of all pairs of two different samples, 0 .. 1.
        is_estimate: whether the share is an estimate; otherwise all pairs were counted.
    """

    kind: str
    share: float
    is_estimate: bool = False

    def per_anchor(self, batch_size: int) -> float:
        """Return the expected number for each image in a uniformly drawn batch."""
        return self.share * (batch_size - 1)


@dataclass(frozen=True, slots=True)
class Rates:
    """Frequency of false negatives.

    Attributes:
        n_samples: N.
        kinds: the kinds of false negatives; a pair can be of several kinds.
        all: the headline figure: pairs that are known, and, without groups, likely near-duplicates.
    """

    n_samples: int
    kinds: tuple[Rate, ...]
    all: Rate

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Return the batch sizes to report: those of `BATCH_SIZES` that have enough samples, else all samples."""
        return tuple(size for size in BATCH_SIZES if size <= self.n_samples) or (self.n_samples,)

    @property
    def left_out(self) -> tuple[int, ...]:
        """Return the batch sizes that are larger than the data."""
        return tuple(size for size in BATCH_SIZES if size > self.n_samples)

    @property
    def verdict_batch_size(self) -> int:
        """Return the batch size of the verdict."""
        return max((size for size in self.batch_sizes if size <= MAX_VERDICT_BATCH_SIZE), default=self.n_samples)

    @property
    def headline_column(self) -> str:
        """Return the heading of the headline figure in a table of all kinds."""
        return "any of these" if self.all.is_estimate else self.all.kind

    @property
    def is_negligible(self) -> bool:
        """Return whether there are so few false negatives that there is nothing to do."""
        return self.all.per_anchor(self.verdict_batch_size) < NEGLIGIBLE

    def sentence(self) -> str:
        """Return the headline in words."""
        number = self.all.per_anchor(self.verdict_batch_size)
        about = "about " if self.all.is_estimate else ""
        shown = f"{about}{number:.2f}" if number >= NEGLIGIBLE else f"fewer than {NEGLIGIBLE:g}"
        fact = f"In a batch of {self.verdict_batch_size:,}, an image meets {shown} false negatives ({self.all.kind})."
        if self.is_negligible:
            verdict_word = "No"
        elif self.all.is_estimate:
            verdict_word = "Few, if any" if number < MIN_CREDIBLE_ESTIMATE else "Probably"
        else:
            verdict_word = "Few" if number < FEW else "Yes"
        return f"{verdict_word}. {fact}"

    def to_dict(self) -> dict[str, Any]:
        """Return the rates as JSON data."""
        rows = [*self.kinds, self.all]
        return {
            "batch_sizes": list(self.batch_sizes),
            "left_out": list(self.left_out),
            "definition": self.all.kind,
            "per_anchor": {row.kind: [row.per_anchor(size) for size in self.batch_sizes] for row in rows},
            "estimates": [row.kind for row in rows if row.is_estimate],
        }


def rates_of(truth: GroundTruth) -> Rates:
    """Return the frequency of false negatives, by kind."""
    kinds = [Rate("same text", same_share(truth.texts))]
    known = kinds[0].share
    name = "same text"
    if truth.groups is not None:
        kinds.insert(0, Rate("same group", same_share(truth.groups)))
        both = same_share(joint_ids(truth.groups, truth.texts))
        known, name = kinds[0].share + kinds[1].share - both, "same group or text"
    if truth.neighbour_sample is None:
        return Rates(len(truth.texts), tuple(kinds), Rate(name, known))
    total, new = _near_duplicate_shares(truth, truth.neighbour_sample)
    kinds.append(Rate(NEAR_DUPLICATES, total, is_estimate=True))
    if truth.has_groups:
        return Rates(len(truth.texts), tuple(kinds), Rate(name, known))
    return Rates(len(truth.texts), tuple(kinds), Rate(f"{name}, or {NEAR_DUPLICATES}", known + new, is_estimate=True))


def same_share(ids: Tensor) -> float:
    """Return the share of pairs of two different samples with the same id (int64, shape (N,)), 0 .. 1."""
    sizes, n = ids.unique(return_counts=True)[1].double(), ids.numel()
    return float((sizes * (sizes - 1)).sum() / max(n * (n - 1), 1))


def joint_ids(first: Tensor, second: Tensor) -> Tensor:
    """Return ids that are equal where both ids are equal, int64, shape (N,)."""
    codes: list[Tensor] = [ids.unique(return_inverse=True)[1] for ids in (first, second)]
    return codes[0] * (int(codes[1].max()) + 1) + codes[1]


def _near_duplicate_shares(truth: GroundTruth, sample: NeighbourSample) -> tuple[float, float]:
    """Return the share of near-duplicates among all pairs, and of those with neither a common text nor a common group."""
    pairs, rows = sample.pairs, sample.rows
    n_pairs = len(rows) * (len(rows) - 1) / 2
    left, right = rows[pairs.left], rows[pairs.right]
    is_new = truth.texts[left] != truth.texts[right]
    if truth.groups is not None:
        is_new &= truth.groups[left] != truth.groups[right]
    probability = pairs.duplicate_probability.double()
    return float(probability.sum()) / n_pairs, float(probability[is_new].sum()) / n_pairs
