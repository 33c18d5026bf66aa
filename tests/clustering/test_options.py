from __future__ import annotations

import pytest

from clip_negatives.clustering.options import default_n_clusters


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 2), (16, 2), (100, 12), (8948, 378), (1_000_000, 4000)])
def test_default_number_of_clusters(n: int, k: int) -> None:
    assert default_n_clusters(n) == k
