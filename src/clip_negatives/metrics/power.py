"""The variance of a gain, and the number of seeds and queries that detect a gain."""

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

    The variance of the mean over S seeds and Q queries is ``seed / S + query / Q + interaction / (S * Q)``.

    Attributes:
        seed: variance between seeds, pooled over methods.
        query: variance between queries (or groups of queries).
        interaction: variance of the interaction of seed and query.
        methods: number of methods besides the baseline, among which the seed variance is pooled.
    """

    seed: float
    query: float
    interaction: float
    methods: int

    def standard_error(self, seeds: int, queries: int) -> float:
        """Return the standard error of the gain."""
        return math.sqrt(self.seed / seeds + self.query / queries + self.interaction / (seeds * queries))

    def degrees_of_freedom(self, seeds: int, queries: int) -> float:
        """Return the degrees of freedom of the standard error, by Satterthwaite's formula; 1 for a single seed."""
        by_seed = (self.seed + self.interaction / queries) / seeds
        by_query = (self.query + self.interaction / seeds) / queries
        spread = by_seed**2 / max(1, self.methods * (seeds - 1)) + by_query**2 / max(1, queries - 1)
        return max(1.0, self.standard_error(seeds, queries) ** 4 / spread) if spread else math.inf

    def detectable_log_ratio(self, seeds: int, queries: int) -> float:
        """Return log(1 + gain) of the smallest gain that is significant with a probability of `POWER`."""
        from scipy.stats import norm, t

        tail = (1 - CONFIDENCE) / (2 * self.methods)  # Bonferroni
        critical = t.isf(tail, self.degrees_of_freedom(seeds, queries)) + norm.ppf(POWER)
        return float(critical * self.standard_error(seeds, queries))

    def seeds_for(self, gain: float, queries: int) -> int | None:
        """Return the number of seeds that detect a relative gain with these queries, or None if no number does."""
        return _smallest(lambda seeds: self.detectable_log_ratio(seeds, queries) <= math.log1p(gain))

    def queries_for(self, gain: float, seeds: int) -> int | None:
        """Return the number of queries that detect a relative gain with these seeds, or None if no number does."""
        return _smallest(lambda queries: self.detectable_log_ratio(seeds, queries) <= math.log1p(gain))


def _smallest(is_enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 2 on that is enough; None above `MOST`. Every larger number must be enough too."""
    low, high = 1, 2
    while not is_enough(high):
        if high > MOST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
