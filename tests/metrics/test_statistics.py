"""Gains with simultaneous intervals: exact cases, and their coverage in simulated comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from clip_negatives.errors import InputError
from clip_negatives.metrics.power import CONFIDENCE, Variance
from clip_negatives.metrics.statistics import Gain, gains, hits, reciprocal


def simulated(
    generator: np.random.Generator, seeds: int, queries: int, methods: int, spread: float, effect: float = 0.0
) -> dict[str, NDArray[np.float64]]:
    """Return scores like reciprocal ranks: methods differ by `spread` in each seed; `m1` is better by `effect`."""
    difficulty = 1.2 * generator.normal(size=queries)
    block = 0.05 * generator.normal(size=(seeds, 1))
    scores = {}
    for method in range(methods + 1):
        cell = 0.5 * generator.normal(size=queries) + 0.7 * generator.normal(size=(seeds, queries))
        shift = effect if method == 1 else 0.0
        scores[f"m{method}"] = np.exp(difficulty + cell + block + spread * generator.normal(size=(seeds, 1)) + shift)
    return scores


@pytest.mark.parametrize(("seeds", "methods", "spread"), [(2, 3, 0.05), (3, 3, 0.05), (2, 4, 0.1), (3, 4, 0.1), (3, 3, 0.0)])
def test_coverage_of_all_intervals_together_is_near_95_percent_without_differences(
    seeds: int, methods: int, spread: float
) -> None:
    generator, n = np.random.default_rng(0), 300
    wrong = sum(
        any(gain.sign for gain in gains(simulated(generator, seeds, 300, methods, spread), "m0").values()) for _ in range(n)
    )
    # 95 % +- 3 standard errors of 300 draws. Small components of the variance make the intervals wider than necessary.
    assert wrong / n <= 1 - CONFIDENCE + 3 * math.sqrt(0.05 * 0.95 / n)


def test_a_percentile_bootstrap_over_two_seeds_would_be_too_narrow() -> None:
    """This is why the seeds have a variance component with few degrees of freedom."""
    generator, n = np.random.default_rng(1), 200
    wrong = 0
    for _ in range(n):
        scores = simulated(generator, 2, 300, 1, 0.4)  # seeds vary more than queries
        draws = []
        for _ in range(200):
            seeds, queries = generator.integers(2, size=2), generator.integers(300, size=300)
            part = {name: values[seeds][:, queries].mean() for name, values in scores.items()}
            draws.append(part["m1"] / part["m0"])
        low, high = np.quantile(draws, [0.025, 0.975])
        wrong += not low <= 1 <= high
    assert wrong / n > 0.15


def test_a_large_difference_is_significant_and_the_others_are_not() -> None:
    result = gains(simulated(np.random.default_rng(0), 3, 1000, 3, 0.02, effect=0.4), "m0")
    assert {name: gain.sign for name, gain in result.items()} == {"m1": 1, "m2": 0, "m3": 0}
    assert result["m1"].estimate == pytest.approx(math.expm1(0.4), abs=0.15)


def test_without_differences_between_queries_the_interval_is_that_of_a_paired_t_test() -> None:
    method, baseline = [0.31, 0.35, 0.30, 0.39], [0.30, 0.31, 0.31, 0.33]
    scores = {name: np.repeat(np.array(values)[:, None], 5, axis=1) for name, values in (("m", method), ("b", baseline))}
    result = gains(scores, "b", relative=False)["m"]
    expected = stats.ttest_rel(method, baseline).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.002)  # simulated quantile
    assert result.estimate == pytest.approx(np.mean(method) - np.mean(baseline))


def test_repeated_queries_of_an_item_are_no_new_information() -> None:
    scores = simulated(np.random.default_rng(0), 3, 50, 2, 0.05)
    repeated = {name: np.repeat(values, 4, axis=1) for name, values in scores.items()}
    single, grouped = gains(scores, "m0"), gains(repeated, "m0", np.repeat(np.arange(50), 4))
    for name in single:
        assert (grouped[name].low, grouped[name].high) == pytest.approx((single[name].low, single[name].high))


def test_variance_is_that_of_the_mean_of_new_seeds_and_queries() -> None:
    """The standard error agrees with the spread of the estimate over many simulated comparisons."""
    generator = np.random.default_rng(0)
    results = [gains(simulated(generator, 3, 300, 3, 0.1), "m0")["m1"] for _ in range(200)]
    spread = np.std([math.log1p(result.estimate) for result in results])
    errors = [result.variance.standard_error(3, 300) for result in results if result.variance is not None]
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.2)


def test_one_seed_has_no_interval() -> None:
    result = gains({"m": [[1.0, 0.5]], "b": [[0.5, 0.5]]}, "b")["m"]
    assert result == Gain(0.5, None, None, None)
    assert result.sign == 0


def test_power() -> None:
    variance = Variance(seed=0.0018, query=6.0, interaction=4.0, methods=3)
    assert variance.standard_error(3, 1000) == pytest.approx(math.sqrt(0.0018 / 3 + 6 / 1000 + 4 / 3000))
    assert (
        variance.detectable_log_ratio(3, 1000) > variance.detectable_log_ratio(5, 1000) > variance.detectable_log_ratio(5, 4000)
    )
    queries = variance.queries_for(0.2, 3)
    assert queries is not None
    assert variance.detectable_log_ratio(3, queries) <= math.log(1.2) < variance.detectable_log_ratio(3, queries - 1)
    assert variance.seeds_for(0.05, 1000) is None  # the queries alone vary more than that
    assert variance.seeds_for(0.05, 10**6) is not None


def test_scores_of_ranks() -> None:
    assert reciprocal([[1, 2], [4, 1]]).tolist() == [[1, 0.5], [0.25, 1]]
    assert hits([1, 5, 6], 5).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("scores", "groups", "words"),
    [
        ({"b": [[1.0, 1.0]], "m": [[1.0]]}, None, "one shape"),
        ({"b": [1.0, 1.0]}, None, "one shape"),
        ({"m": [[1.0, 1.0]]}, None, "baseline 'b' has no scores"),
        ({"b": [[1.0, 1.0]]}, [0], "a group for each of 2 queries"),
        ({"b": [[1.0, 1.0]]}, [0, 0], "at least two groups"),
        ({"b": [[0.0, 0.0]], "m": [[1.0, 1.0]]}, None, "mean score of b is 0"),
    ],
)
def test_bad_scores(scores: dict[str, object], groups: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        gains(scores, "b", groups)
