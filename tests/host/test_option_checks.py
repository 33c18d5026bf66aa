from __future__ import annotations

import math

import pytest

from clip_negatives.errors import InputError
from clip_negatives.host.option_checks import check_choice, check_number


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-1, {"at_least": 0}, "beta must be at least 0, got -1."),
        (0.0, {"above": 0, "at_most": 1}, "beta must be above 0 and at most 1, got 0.0."),
        (1.0, {"at_least": 0, "below": 1}, "beta must be at least 0 and below 1, got 1.0."),
        (math.inf, {}, "beta must be finite, got inf."),
        (math.nan, {"at_least": 0}, "beta must be finite, got nan."),
    ],
)
def test_numbers_out_of_range(value: float, limits: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_number("beta", value, **limits)
    assert str(caught.value) == message


def test_limits_that_hold() -> None:
    check_number("beta", 0, at_least=0, at_most=0)
    check_number("beta", 1e-9, above=0, below=1)


def test_choices() -> None:
    check_choice("by", "text", ("image", "text"))
    with pytest.raises(InputError, match="by must be image, text or both, got 'colour'"):
        check_choice("by", "colour", ("image", "text", "both"))
