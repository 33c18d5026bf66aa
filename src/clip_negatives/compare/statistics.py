"""Means, spreads and paired differences over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95  # of the intervals


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and standard deviation (divisor n - 1) of a figure over seeds; `spread` is None for a single seed."""

    mean: float
    spread: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference between a method and the baseline, paired by seed, with a 95 % interval (None for a single seed)."""

    mean: float
    low: float | None
    high: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and standard deviation."""
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_difference(method: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return the mean paired difference and its Student t interval, which assumes normally distributed differences."""
    differences = [value - reference for value, reference in zip(method, baseline, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    if n < 2:
        return Difference(mean, None, None)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half)
