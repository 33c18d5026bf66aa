from __future__ import annotations

import pytest
from scipy import stats

from clip_negatives.compare.statistics import paired_difference, summarise


def test_interval_equals_scipy() -> None:
    method, baseline = [0.31, 0.35, 0.30, 0.39], [0.30, 0.31, 0.31, 0.33]
    found = paired_difference(method, baseline)
    expected = stats.ttest_rel(method, baseline).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(sum(method) / 4 - sum(baseline) / 4)


def test_one_seed_has_no_spread() -> None:
    assert summarise([0.5]).spread is None
    assert paired_difference([0.5], [0.4]).low is None


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.5], [0.4, 0.3])
