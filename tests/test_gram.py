"""Inner products of the rows of one matrix."""

from __future__ import annotations

import pytest
import torch

from clip_negatives.gram import STRIP, gram


@pytest.mark.parametrize("n", [0, 1, 5, STRIP, STRIP + 1, 2 * STRIP + 40])
def test_equals_the_product(n: int) -> None:
    rows = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    products = gram(rows)
    torch.testing.assert_close(products, rows @ rows.T)
    memory = torch.empty(n, n, dtype=torch.float64).T
    assert gram(rows, out=memory) is memory
    torch.testing.assert_close(memory, products)
