"""Sums of the weights of each row and column, from a histogram of the clusters of the batch instead of from the pairs.

``sum_j exp(b_ij) = (E H F^T)[a_i, c_i]`` for image cluster a and text cluster c, with E and F the exponentials of the tables
and H the number of samples in each pair of clusters: O(K^3) instead of B^2 exponentials. Products are float64, which autocast
and TF32 do not change: counts can exceed the range of float16, and an error here changes all losses of a cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.losses.kernels.pairs import Pairs
from clip_negatives.losses.kernels.sums import IMPORTANCE, KEPT, PairSums

# The histogram is cheaper up to this many multiplications per pair of the batch.
PRODUCTS_PER_PAIR = 8  # on accelerators; an estimate, not measured
# On the CPU, measured on an AMD EPYC with one thread, float32: the sums over the pairs take 4 to 10 ns a pair. The histogram
# takes 3 ms for 64 clusters, as much as for 10 million multiplications more, 27 to 34 ms for 256 and 1 s for 1000.
PRODUCTS_PER_PAIR_OF_CPU = 32
PRODUCTS_OF_OVERHEAD = 10**7


def applies(pairs: Pairs, n_rows: int, n_columns: int, device: torch.device) -> bool:
    """Return whether the sums depend on tables only, and the histogram is cheaper."""
    from_tables = pairs.rows.factors is None and pairs.rows.groups is None and pairs.row_limits is None and not pairs.hardness
    image, text = (1 if table is None else len(table) for table in (pairs.rows.image_table, pairs.rows.text_table))
    products, n_pairs = 3 * image * text * (image + text), n_rows * n_columns
    if device.type == "cpu":
        return from_tables and products + PRODUCTS_OF_OVERHEAD <= PRODUCTS_PER_PAIR_OF_CPU * n_pairs
    return from_tables and products <= PRODUCTS_PER_PAIR * n_pairs


def add(sums: PairSums, pairs: Pairs, n_columns: int) -> PairSums:
    """Return `sums` with `IMPORTANCE` and `KEPT` filled in."""
    n_rows = sums.rows.shape[1]
    rows = _filled(sums.rows, pairs, n_columns, transposed=False)
    return PairSums(rows, _filled(sums.columns, pairs, n_rows, transposed=True) if pairs.columns_too else sums.columns)


def _filled(sums: Tensor, pairs: Pairs, m: int, *, transposed: bool) -> Tensor:
    """Return the sums of rows, or if `transposed` of columns, over m candidates, with both parts filled in."""
    anchors, candidates = (pairs.columns, pairs.rows) if transposed else (pairs.rows, pairs.columns)
    n = sums.shape[1]
    exact = sums.new_empty(0, dtype=torch.float32 if sums.device.type == "mps" else torch.float64)  # mps has no float64
    image_of, text_of = _labels(anchors.image_labels, n, sums), _labels(anchors.text_labels, n, sums)
    tables = [
        exact.new_zeros(1, 1) if table is None else (table.T if transposed else table).to(exact.dtype)
        for table in (pairs.rows.image_table, pairs.rows.text_table)
    ]
    k = len(tables[1])
    cell = _labels(candidates.image_labels, m, sums) * k + _labels(candidates.text_labels, m, sums)
    histogram = exact.new_zeros(len(tables[0]) * k).scatter_add_(0, cell, exact.new_ones(m)).view(-1, k)
    with torch.no_grad():
        levels = [_level(table) for table in tables]
        weights = _sum_without_own([(table - level).exp() for table, level in zip(tables, levels, strict=True)], histogram)
        kept = _sum_without_own([(table > -torch.inf).to(exact.dtype) for table in tables], histogram)
    level = levels[0][image_of, 0] + levels[1][text_of, 0]
    filled = list(sums)
    filled[IMPORTANCE] = (weights[image_of, text_of].log() + level).to(sums.dtype)
    filled[KEPT] = kept[image_of, text_of].to(sums.dtype)
    return torch.stack(filled)


def _labels(labels: Tensor | None, n: int, like: Tensor) -> Tensor:
    return torch.zeros(n, dtype=torch.int64, device=like.device) if labels is None else labels


def _level(table: Tensor) -> Tensor:
    """Return the largest entry of each row: exponentials relative to it neither overflow nor vanish."""
    top = table.amax(dim=1, keepdim=True)
    return top.masked_fill(top == -torch.inf, 0.0)


def _sum_without_own(factors: list[Tensor], histogram: Tensor) -> Tensor:
    """Return, for each cell, the sum over all samples but one of the cell (the positive), without cancellation."""
    image, text = factors
    own_image, own_text = image.diagonal(), text.diagonal()
    other_image, other_text = (factor - factor.diagonal().diag() for factor in factors)
    different_image = other_image @ (histogram @ text.T)
    same_image = own_image[:, None] * (histogram @ other_text.T)
    same_cell = own_image[:, None] * own_text * (histogram - 1).clamp(min=0)
    return different_image + same_image + same_cell
