"""The cost of plugins that see the step, measured at small size."""

from __future__ import annotations

from step_overhead import cases, ratios


def test_all_cases_train() -> None:
    """Each case has a ratio; the constant terms are the unit."""
    found = ratios(cases("torch"), rounds=1)
    assert list(found) == ["constant", "scheduled", "function of the step", "observed"]
    assert found["constant"] == 1
    assert all(ratio > 0 for ratio in found.values())
