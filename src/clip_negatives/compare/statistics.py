"""Means, spreads and paired differences over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Confidence of every interval."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Summarise one figure of one method over seeds.

    Attributes:
        mean: mean over seeds.
        spread: standard deviation over seeds (n - 1); None for one seed.
    """

    mean: float
    spread: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Summarise the paired difference of a method to the baseline over seeds.

    Attributes:
        mean: mean of method minus baseline of the same seed.
        low: lower end of the confidence interval of the mean; None for one seed.
        high: upper end; None for one seed.
    """

    mean: float
    low: float | None
    high: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and standard deviation.

    Examples:
        >>> summarise([1.0, 3.0])
        Summary(mean=2.0, spread=1.4142135623730951)
    """
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def paired_difference(method: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return the mean difference of two runs of each seed and its Student t interval, which assumes normal differences.

    Examples:
        >>> paired_difference([2.0, 4.0, 6.0], [1.0, 3.0, 5.0])
        Difference(mean=1.0, low=1.0, high=1.0)
    """
    differences = [a - b for a, b in zip(method, baseline, strict=True)]
    mean = statistics.fmean(differences)
    n = len(differences)
    if n < 2:
        return Difference(mean, None, None)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half)
