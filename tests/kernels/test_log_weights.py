"""The look-up of log-weights that the backends share."""

from __future__ import annotations

import pytest
import torch

from clip_negatives.errors import InputError
from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import log_weights
from tests.info_nce import dense, weights


@pytest.mark.parametrize("parts", ["i", "t", "f", "if", "itf"])
@pytest.mark.parametrize("images_are_rows", [False, True])
def test_a_block_is_that_part_of_the_matrix_of_all_pairs(parts, images_are_rows):
    terms = weights(8, parts=parts)
    rows, columns = torch.tensor([1, 6, 3]), torch.tensor([0, 2, 5, 7])
    b = dense(terms, 8)
    expected = b[rows][:, columns] if images_are_rows else b.T[rows][:, columns]
    found = log_weights.block(terms.take(rows), terms.take(columns), torch.float64, images_are_rows=images_are_rows)
    torch.testing.assert_close(found, expected)


def test_a_block_may_be_written_without_harm_to_the_terms():
    terms = LossTerms(image_labels=torch.arange(3), image_table=torch.zeros(3, 3))
    log_weights.block(terms, terms, torch.float32).fill_(7.0)
    assert not terms.image_table.any()


def test_neutral_terms_have_no_block():
    with pytest.raises(InputError, match="got neutral ones"):
        log_weights.block(LossTerms(), LossTerms(), torch.float32)


def test_mean_one_shift_leaves_what_is_empty_alone():
    log_sum, kept = torch.tensor([-torch.inf, 3.0]), torch.tensor([0, 2])
    torch.testing.assert_close(log_weights.mean_one_shift(log_sum, kept), torch.tensor([0.0, 3.0 - 0.693147]))
