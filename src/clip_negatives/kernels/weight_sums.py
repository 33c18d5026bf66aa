"""Sums of the weights of each row and column from the histogram of the batch's clusters, without a look at a pair.

Weights are made of two tables, so all samples with one image cluster a and one text cluster c have the same weights with
everyone, and ``sum_j exp(b_ij) = (E H F^T)[a_i, c_i]`` with E and F the exponentials of the tables and H the number of samples
of each pair of clusters: O(K^3) instead of B^2 exponentials.

They are products of K x K matrices in float64, which autocast and TF32 leave alone: counts of samples are beyond float16, and
an error here moves every loss of a cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clip_negatives.kernels.pairs import IMPORTANCE, KEPT, Pairs, PairSums

PRODUCTS_PER_PAIR = 8
"""Up to so many multiplications for each pair of the batch the histogram is the cheaper way; an estimate, see `applies`."""


def applies(pairs: Pairs, n_rows: int, n_columns: int) -> bool:
    """Return whether the sums follow from tables alone, and this is the cheaper way."""
    from_tables = pairs.rows.factors is None and pairs.rows.groups is None and pairs.rows.limits is None and not pairs.hardness
    image = 1 if pairs.image_table is None else len(pairs.image_table)
    text = 1 if pairs.text_table is None else len(pairs.text_table)
    return from_tables and 3 * image * text * (image + text) <= PRODUCTS_PER_PAIR * n_rows * n_columns


def add(sums: PairSums, pairs: Pairs, n_columns: int) -> PairSums:
    """Return `sums` with `IMPORTANCE` and `KEPT` filled in."""
    n_rows = sums.rows.shape[1]
    rows = _filled(sums.rows, pairs, n_columns, transposed=False)
    return PairSums(rows, _filled(sums.columns, pairs, n_rows, transposed=True) if pairs.columns_too else sums.columns)


def _filled(sums: Tensor, pairs: Pairs, m: int, *, transposed: bool) -> Tensor:
    """Return the sums of the rows, or of the columns, as anchors of m others."""
    anchors, others = (pairs.columns, pairs.rows) if transposed else (pairs.rows, pairs.columns)
    n = sums.shape[1]
    exact = sums.new_empty(0, dtype=torch.float32 if sums.device.type == "mps" else torch.float64)  # mps has no float64
    image_of, text_of = _labels(anchors.image_labels, n, sums), _labels(anchors.text_labels, n, sums)
    tables = [
        exact.new_zeros(1, 1) if table is None else (table.T if transposed else table).to(exact.dtype)
        for table in (pairs.image_table, pairs.text_table)
    ]
    k = len(tables[1])
    cell = _labels(others.image_labels, m, sums) * k + _labels(others.text_labels, m, sums)
    histogram = exact.new_zeros(len(tables[0]) * k).scatter_add_(0, cell, exact.new_ones(m)).view(-1, k)
    with torch.no_grad():
        levels = [_level(table) for table in tables]
        weights = _sum_but_one([(table - level).exp() for table, level in zip(tables, levels, strict=True)], histogram)
        kept = _sum_but_one([(table > -torch.inf).to(exact.dtype) for table in tables], histogram)
    level = levels[0][image_of, 0] + levels[1][text_of, 0]
    filled = [sums[part] for part in range(len(sums))]
    filled[IMPORTANCE] = (weights[image_of, text_of].log() + level).to(sums.dtype)
    filled[KEPT] = kept[image_of, text_of].to(sums.dtype)
    return torch.stack(filled)


def _labels(labels: Tensor | None, n: int, like: Tensor) -> Tensor:
    """Return the labels, all 0 where there is no table."""
    return torch.zeros(n, dtype=torch.int64, device=like.device) if labels is None else labels


def _level(table: Tensor) -> Tensor:
    """Return the largest entry of each row, so that exponentials of what is left neither overflow nor vanish."""
    top = table.amax(dim=1, keepdim=True)
    return top.masked_fill(top == -torch.inf, 0.0)


def _sum_but_one(factors: list[Tensor], histogram: Tensor) -> Tensor:
    """Return of each cell the sum over all samples but one of that very cell, the positive; nothing is subtracted from sums."""
    image, text = factors
    own_image, own_text = image.diagonal(), text.diagonal()
    other_image, other_text = (factor - factor.diagonal().diag() for factor in factors)
    everyone = other_image @ (histogram @ text.T)
    same_image = own_image[:, None] * (histogram @ other_text.T)
    same_cell = own_image[:, None] * own_text * (histogram - 1).clamp(min=0)
    return everyone + same_image + same_cell
