from __future__ import annotations

from clip_negatives.clustering.fit import refresh_due


def test_refresh_is_due_every_few_epochs_but_not_before_the_first() -> None:
    assert [epoch for epoch in range(7) if refresh_due(epoch, 3)] == [3, 6]
    assert not any(refresh_due(epoch, every) for epoch in range(7) for every in (None, 0))
