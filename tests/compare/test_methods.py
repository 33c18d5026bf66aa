from __future__ import annotations

import pytest

from clip_negatives.compare import parse_methods
from clip_negatives.compare.methods import fixed_baseline
from clip_negatives.errors import ClipNegativesError, InputError, OptionError, UnknownNameError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in_batch,paper", ["in_batch", "paper", "random_reduction"]),
        ("paper", ["in_batch", "paper", "random_reduction"]),
        ("random_reduction,in_batch", ["in_batch", "random_reduction"]),
        (
            "weighted_infonce:beta=2,normalize=false,cluster_similarity",
            ["in_batch", "weighted_infonce:beta=2,normalize=false", "cluster_similarity", "random_reduction"],
        ),
    ],
)
def test_baseline_and_control_are_always_there(text: str, expected: list[str]) -> None:
    assert list(parse_methods(text)) == expected


def test_what_a_method_stands_for() -> None:
    methods = {
        name: (method.sampler, method.weighting)
        for name, method in parse_methods("default,paper,cluster_similarity,weighted_infonce:beta=2").items()
    }
    assert methods["default"] == ("cluster_similarity", "weighted_infonce")
    assert methods["paper"] == ("cluster_similarity", "weighted_infonce:text_beta=0.0,remove=true")
    assert methods["cluster_similarity"] == ("cluster_similarity", "uniform")
    assert methods["weighted_infonce:beta=2"] == ("in_batch", "weighted_infonce:beta=2")


def test_temperature_is_held_where_it_is_named() -> None:
    methods = parse_methods("default,default@0.1,weighted_infonce:beta=2@0.05")
    assert [method.temperature for method in methods.values()] == [None, None, 0.1, 0.05, None]
    assert methods["default@0.1"].weighting == methods["default"].weighting
    assert methods["weighted_infonce:beta=2@0.05"].weighting == "weighted_infonce:beta=2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("paper", ["in_batch", "in_batch@0.1", "paper", "random_reduction"]),
        ("paper,in_batch@0.10", ["in_batch", "in_batch@0.1", "paper", "random_reduction"]),
        ("in_batch@0.05,paper", ["in_batch", "in_batch@0.1", "in_batch@0.05", "paper", "random_reduction"]),
    ],
)
def test_the_baseline_at_a_held_temperature_stands_beside_the_baseline(text: str, expected: list[str]) -> None:
    methods = parse_methods(text, 0.1)
    assert list(methods) == expected
    assert methods["in_batch@0.1"].temperature == 0.1
    assert fixed_baseline(methods) == "in_batch@0.1"
    assert fixed_baseline(["in_batch", "paper"]) is None


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("papr", UnknownNameError, "Did you mean 'paper'"),
        ("in_batch+weighted", UnknownNameError, "weighted_infonce"),
        ("in_batch+weighted_infonce:bet=2", OptionError, "beta"),
        ("paper,paper", InputError, "Name each method once"),
        ("paper@", InputError, "paper@0.1"),
        ("paper@low", InputError, "paper@0.1"),
        ("paper@5", InputError, "0.01 .. 1"),
        ("papr@0.1", UnknownNameError, "Did you mean 'paper'"),
    ],
)
def test_bad_methods(text: str, error: type[ClipNegativesError], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_methods(text)
