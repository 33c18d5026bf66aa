"""The result of a comparison in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from clip_negatives.advice import argument
from clip_negatives.compare.methods import BASELINE, CONTROL
from clip_negatives.metrics.power import Variance
from clip_negatives.metrics.statistics import Gain

WANTED = 0.05  # gain for which the needed seeds and queries are computed


def verdict(
    over_baseline: Mapping[str, Gain], over_fixed: Mapping[str, Gain], fixed: str | None, seeds: int, queries: int
) -> str:
    """Return the result in words: the best method, or that none differs, and the seeds or queries that a gain of 5 % needs.

    The control is never named.

    Args:
        over_baseline: gains over the baseline.
        over_fixed: gains over the baseline with a fixed temperature.
        fixed: name of that baseline; None without it.
        seeds: number of seeds.
        queries: number of independent queries: of items, each of which may have several queries.
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
        return f"{best} is significantly better than {BASELINE}: {better[best]} in MRR.{_beside_fixed(best, over_fixed, fixed)}"
    power = _power([gain.variance for gain in rows.values() if gain.variance is not None], seeds, queries)
    if worse:
        return f"No method is significantly better than {BASELINE}. Significantly worse: {', '.join(worse)}. {power}"
    return f"No method differs significantly from {BASELINE}. {power}"


def _beside_fixed(best: str, over_fixed: Mapping[str, Gain], fixed: str | None) -> str:
    """Return the sentence that compares the best method with the baseline at a fixed temperature."""
    if fixed is None:
        return ""
    if best == fixed:
        return "" if any(gain.sign > 0 for gain in over_fixed.values()) else f" No method is significantly better than {fixed}."
    gain = over_fixed[best]
    words = {1: "significantly better", 0: "not significantly different", -1: "significantly worse"}[gain.sign]
    return f" Compared with {fixed}, it is {words}: {gain}."


def _power(variances: list[Variance], seeds: int, queries: int) -> str:
    """Return the sentences on the smallest gain that this comparison detects, and on the seeds or queries that 5 % needs."""
    seed, query, interaction = (
        fmean(getattr(variance, name) for variance in variances) for name in ("seed", "query", "interaction")
    )
    variance = Variance(seed, query, interaction, variances[0].methods)
    smallest = math.expm1(variance.detectable_log_ratio(seeds, queries))
    if smallest <= WANTED:
        return f"A gain of {100 * smallest:.1f} % or more would probably have been significant."
    needed = {
        "seeds": variance.seeds_for(WANTED, queries),
        "test items": variance.queries_for(WANTED, seeds),
    }
    options = [f"about {number:,} {unit}" for unit, number in needed.items() if number is not None]
    if not options:
        factor = next(n for n in range(2, 10**6) if variance.detectable_log_ratio(n * seeds, n * queries) <= math.log1p(WANTED))
        options = [f"about {factor * seeds:,} seeds with {factor * queries:,} test items"]
    return (
        f"The smallest gain that this comparison would probably detect is about {100 * smallest:.0f} %. To detect a gain of "
        f"{100 * WANTED:.0f} %, use {', or '.join(options)}."
    )
