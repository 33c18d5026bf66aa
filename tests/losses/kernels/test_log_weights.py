"""The look-up of log-weights that the backends share."""

from __future__ import annotations

import pytest
import torch

from clip_negatives.losses.kernels import log_weights, weight_sums
from clip_negatives.losses.kernels.pairs import Pairs
from clip_negatives.losses.kernels.sums import IMPORTANCE, KEPT, PairSums, empty_sums
from clip_negatives.terms import LossTerms
from tests.info_nce import dense, weights


@pytest.mark.parametrize("parts", ["i", "t", "f", "if", "itf"])
@pytest.mark.parametrize("images_are_rows", [False, True])
def test_a_block_is_that_part_of_the_matrix_of_all_pairs(parts, images_are_rows):
    terms = weights(8, parts=parts)
    rows, columns = torch.tensor([1, 6, 3, 2]), torch.tensor([0, 2, 5, 7])
    b = dense(terms, 8)
    expected = b[rows][:, columns] if images_are_rows else b.T[rows][:, columns]
    pairs = Pairs.of(terms.take(rows), terms.take(columns))
    pairs = pairs if images_are_rows else pairs.transposed_tables()
    torch.testing.assert_close(log_weights.all_pairs(pairs, torch.float64), expected)
    out, spare = torch.full((2, 4, 3), torch.nan, dtype=torch.float64)
    log_weights.write_block(pairs, slice(1, 4), out.T, spare.T)
    torch.testing.assert_close(out.T, expected[1:4])


@pytest.mark.parametrize("parts", ["i", "t", "it", ""])
@pytest.mark.parametrize("columns_too", [False, True])
@pytest.mark.parametrize("shift", [0.0, -300.0])
def test_sums_of_weights_follow_from_the_histogram(parts, columns_too, shift):
    n, offset = 9, 3
    terms = weights(n, k=4, parts=parts, drop=0.4)
    if terms.image_table is not None:
        terms.image_table[2] += shift  # so low that its exponential would vanish
    rows = terms if columns_too else terms.take(torch.arange(offset, 8))
    pairs = Pairs.of(rows, terms, columns_too=columns_too, offset=0 if columns_too else offset)
    b = dense(terms, n).fill_diagonal_(-torch.inf)
    sides = [b, b.T] if columns_too else [b[offset:8]]
    empty = [empty_sums(len(side), b) for side in sides] + [b.new_zeros(6, 0)] * (2 - len(sides))
    for found, side in zip(weight_sums.add(PairSums(*empty), pairs, n), sides, strict=False):
        torch.testing.assert_close(found[IMPORTANCE], side.logsumexp(dim=1))
        torch.testing.assert_close(found[KEPT], (side > -torch.inf).sum(1).double())


CPU = torch.device("cpu")


def test_the_histogram_serves_tables_of_few_clusters_only():
    few, many, factors = weights(64, k=3, parts="it"), weights(64, k=60, parts="it"), weights(64, k=3)
    for device in (CPU, torch.device("cuda")):
        assert weight_sums.applies(Pairs.of(few, few), 640, 640, device)
        assert not weight_sums.applies(Pairs.of(many, many), 64, 64, device)
        assert not weight_sums.applies(Pairs.of(factors, factors), 640, 640, device)
        hard = few.replace(hardness=1.0)
        assert not weight_sums.applies(Pairs.of(hard, hard), 640, 640, device)


@pytest.mark.parametrize(("k", "n"), [(16, 600), (64, 640), (128, 1024), (256, 2048)])
def test_on_the_cpu_the_histogram_starts_at_the_measured_size(k, n):
    pairs = Pairs.of(*[weights(2, k=k, parts="it")] * 2)
    assert weight_sums.applies(pairs, n, n, CPU)
    assert not weight_sums.applies(pairs, 3 * n // 4, 3 * n // 4, CPU)


def test_a_block_of_groups_alone_is_on_their_device():
    groups = LossTerms(groups=torch.arange(3, device="meta"))
    assert log_weights.block(groups, groups).device.type == "meta"
