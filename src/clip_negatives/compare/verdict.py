"""The result of a comparison in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from clip_negatives.advice import argument
from clip_negatives.compare.methods import BASELINE, CONTROL
from clip_negatives.metrics.power import Variance
from clip_negatives.metrics.statistics import Gain

WANTED = 0.05  # the gain for which the number of seeds and queries is given


def verdict(
    over_baseline: Mapping[str, Gain], over_held: Mapping[str, Gain], held: str | None, seeds: int, queries: int
) -> str:
    """Return the result: the best method, or that none differs and what would show a gain of 5 %. The control is never named.

    Args:
        over_baseline: gains over the baseline.
        over_held: gains over the baseline with a held temperature.
        held: name of that baseline; None without it.
        seeds: number of seeds.
        queries: number of independent queries: items, of which several queries may ask.
    """
    rows = {name: gain for name, gain in over_baseline.items() if name != CONTROL}
    if seeds == 1:
        return f"One seed cannot show whether methods differ. Use {argument('seeds')} with 2 or more."
    if not rows:
        return f"Nothing is compared with {BASELINE}. Name methods with {argument('methods')}."
    better = {name: gain for name, gain in rows.items() if gain.sign > 0}
    worse = [name for name, gain in rows.items() if gain.sign < 0]
    if better:
        best = max(better, key=lambda name: better[name].estimate)
        return f"{best} gains {better[best]} MRR over {BASELINE}.{_beside_held(best, over_held, held)}"
    power = _power([gain.variance for gain in rows.values() if gain.variance is not None], seeds, queries)
    if worse:
        return f"No method gains over {BASELINE}. Significantly worse: {', '.join(worse)}. {power}"
    return f"No method differs significantly from {BASELINE}. {power}"


def _beside_held(best: str, over_held: Mapping[str, Gain], held: str | None) -> str:
    """Return the sentence that compares the best method with the baseline at a held temperature."""
    if held is None:
        return ""
    if best == held:
        return "" if any(gain.sign > 0 for gain in over_held.values()) else f" No method gains over {held}."
    gain = over_held[best]
    words = {1: "gains", 0: "does not differ significantly", -1: "is significantly worse"}[gain.sign]
    return f" Over {held}, it {words}: {gain}."


def _power(variances: list[Variance], seeds: int, queries: int) -> str:
    """Return the sentences on the smallest gain that this comparison shows, and on what would show 5 %."""
    seed, query, rest = (fmean(getattr(variance, name) for variance in variances) for name in ("seed", "query", "rest"))
    variance = Variance(seed, query, rest, variances[0].methods)
    smallest = math.expm1(variance.detectable(seeds, queries))
    if smallest <= WANTED:
        return f"Gains of {smallest:.1%} or more would probably have been significant."
    needed = {
        "seeds": variance.seeds_for(WANTED, queries),
        "test items": variance.queries_for(WANTED, seeds),
    }
    ways = [f"{number:,} {unit}" for unit, number in needed.items() if number is not None]
    if not ways:
        factor = next(n for n in range(2, 10**6) if variance.detectable(n * seeds, n * queries) <= math.log1p(WANTED))
        ways = [f"{factor * seeds:,} seeds with {factor * queries:,} test items"]
    return f"This comparison shows gains of about {smallest:.0%}; about {' or '.join(ways)} would show {WANTED:.0%}."
