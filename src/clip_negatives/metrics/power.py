"""The variance of a gain, and how many seeds and queries show a gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

CONFIDENCE = 0.95  # of the intervals of all methods together
POWER = 0.8  # probability that a true difference is significant
MOST = 10**6  # seeds or queries: more are as good as unreachable


@dataclass(frozen=True, slots=True)
class Variance:
    """Variance of a gain as a function of the numbers of seeds and queries.

    The variance of the mean over S seeds and Q queries is ``seed / S + query / Q + rest / (S * Q)``.

    Attributes:
        seed: variance between seeds, pooled over methods.
        query: variance between queries (or groups of queries).
        rest: variance within a seed and a query.
        methods: number of methods besides the baseline, among which the seed variance is pooled.
    """

    seed: float
    query: float
    rest: float
    methods: int

    def error(self, seeds: int, queries: int) -> float:
        """Return the standard error of the gain."""
        return math.sqrt(self.seed / seeds + self.query / queries + self.rest / (seeds * queries))

    def degrees(self, seeds: int, queries: int) -> float:
        """Return the degrees of freedom of the standard error, by Satterthwaite's formula; 1 for a single seed."""
        by_seed = (self.seed + self.rest / queries) / seeds
        by_query = (self.query + self.rest / seeds) / queries
        spread = by_seed**2 / max(1, self.methods * (seeds - 1)) + by_query**2 / max(1, queries - 1)
        return max(1.0, self.error(seeds, queries) ** 4 / spread) if spread else math.inf

    def detectable(self, seeds: int, queries: int) -> float:
        """Return the log of the smallest gain that is significant with a probability of `POWER`."""
        from scipy.stats import norm, t

        tail = (1 - CONFIDENCE) / (2 * self.methods)  # Bonferroni
        critical = t.isf(tail, self.degrees(seeds, queries)) + norm.ppf(POWER)
        return float(critical * self.error(seeds, queries))

    def seeds_for(self, gain: float, queries: int) -> int | None:
        """Return the number of seeds that show a relative gain with these queries, or None if no number does."""
        return _smallest(lambda seeds: self.detectable(seeds, queries) <= math.log1p(gain))

    def queries_for(self, gain: float, seeds: int) -> int | None:
        """Return the number of queries that show a relative gain with these seeds, or None if no number does."""
        return _smallest(lambda queries: self.detectable(seeds, queries) <= math.log1p(gain))


def _smallest(shows: Callable[[int], bool]) -> int | None:
    """Return the smallest whole number from 2 on that `shows`, which holds for all numbers after it; None above `MOST`."""
    low, high = 1, 2
    while not shows(high):
        if high > MOST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high
