"""The sentences of the verdict, from made-up gains."""

from __future__ import annotations

import math

import pytest

from clip_negatives.compare.verdict import verdict
from clip_negatives.metrics.power import Variance
from clip_negatives.metrics.statistics import Gain

VARIANCE = Variance(seed=0.002, query=3.0, interaction=1.0, methods=4)


def gain(estimate: float, half: float = 0.1) -> Gain:
    return Gain(estimate, estimate - half, estimate + half, VARIANCE)


def test_the_best_method_is_compared_with_the_fixed_temperature() -> None:
    over = {"in_batch@0.1": gain(0.02), "a": gain(0.2), "b": gain(0.3), "random_reduction": gain(0.5)}
    over_fixed = {"a": gain(0.15), "b": gain(0.05), "random_reduction": gain(0.4)}
    assert verdict(over, over_fixed, "in_batch@0.1", 3, 1000) == (
        "b is significantly better than in_batch: +30.0 % [+20.0, +40.0] in MRR. Compared with in_batch@0.1, it is not "
        "significantly different: +5.0 % [-5.0, +15.0]."
    )


def test_the_fixed_temperature_alone_is_better() -> None:
    over = {"in_batch@0.1": gain(0.2), "a": gain(0.01)}
    assert verdict(over, {"a": gain(-0.15)}, "in_batch@0.1", 3, 1000) == (
        "in_batch@0.1 is significantly better than in_batch: +20.0 % [+10.0, +30.0] in MRR. No method is significantly better "
        "than in_batch@0.1."
    )


def test_the_control_is_never_named() -> None:
    over = {"a": gain(0.01), "random_reduction": gain(0.5)}
    text = verdict(over, {}, None, 3, 1000)
    assert text.startswith(
        "No method differs significantly from in_batch. The smallest gain that this comparison would probably"
    )
    assert "random_reduction" not in text


def test_worse_methods_are_named() -> None:
    text = verdict({"a": gain(-0.3), "b": gain(0.01)}, {}, None, 3, 1000)
    assert text.startswith("No method is significantly better than in_batch. Significantly worse: a. The smallest gain")


@pytest.mark.parametrize(
    ("variance", "words"),
    [
        (Variance(0.0001, 0.2, 5.0, 3), "seeds, or about"),  # either would do
        (Variance(0.002, 30.0, 10.0, 3), "seeds with"),  # neither alone
        (Variance(0.0, 0.01, 0.01, 3), "would probably have been significant"),
    ],
)
def test_the_verdict_names_the_seeds_or_queries_that_detect_5_percent(variance: Variance, words: str) -> None:
    text = verdict({"a": Gain(0.0, -0.1, 0.1, variance)}, {}, None, 3, 1000)
    assert words in text, text


def test_the_numbers_of_the_power_sentence_are_those_of_the_variance() -> None:
    text = verdict({"a": gain(0.0)}, {}, None, 3, 1000)
    assert f"would probably detect is about {100 * math.expm1(VARIANCE.detectable_log_ratio(3, 1000)):.0f} %." in text


def test_one_seed_shows_nothing() -> None:
    over = {"a": Gain(0.3, None, None, None)}
    assert verdict(over, {}, None, 1, 1000) == "One seed cannot show whether methods differ. Use seeds= with 2 or more."
