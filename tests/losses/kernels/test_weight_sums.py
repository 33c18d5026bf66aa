"""Sums of weights from the histogram of clusters, whatever precision products are taken in around them."""

from __future__ import annotations

import pytest
import torch

from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.functional import weighted_info_nce
from clip_negatives.losses.kernels import weight_sums
from clip_negatives.losses.kernels.pairs import Pairs
from clip_negatives.losses.kernels.sums import IMPORTANCE, KEPT, PairSums, empty_sums
from tests.info_nce import features, naive_treated

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def sums(n, k, table, dtype=torch.float32):
    """Return the sums of n samples, whose labels go round, and an exact double loop over clusters."""
    labels, others = torch.arange(n) % k, torch.arange(n) * 7 % k
    table = table.to(dtype)
    terms = LossTerms(image_labels=labels, image_table=table, text_labels=others, text_table=table).to(DEVICE)
    pairs = Pairs.of(terms, terms)
    nothing = torch.zeros(1, dtype=dtype, device=DEVICE)
    return weight_sums.add(PairSums(empty_sums(n, nothing), empty_sums(n, nothing)), pairs, n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_counts_and_weights_do_not_depend_on_autocast(dtype):
    n, table = 70_000, -3 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast(DEVICE, dtype):
        found = sums(n, 4, table)
    exact = sums(n, 4, table, torch.float64)
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours[KEPT] == n - 1).all()
        torch.testing.assert_close(ours[IMPORTANCE].double(), truth[IMPORTANCE], rtol=1e-6, atol=1e-6)


def test_the_loss_under_autocast_is_that_of_the_pairs_themselves(monkeypatch):
    n = 640
    x, y = (side.detach() for side in features(n, 16, dtype=torch.float32))
    generator = torch.Generator().manual_seed(1)
    labels, tables = torch.randint(8, (2, n), generator=generator), -3 * torch.rand(2, 8, 8, generator=generator)
    terms = LossTerms(
        image_labels=labels[0], image_table=tables[0], text_labels=labels[1], text_table=tables[1], normalize=True
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert weight_sums.applies(Pairs.of(terms, terms), n, n, x.device)
        from_histogram = weighted_info_nce(x, y, 14.3, terms=terms, backend="chunked")
        monkeypatch.setattr(weight_sums, "applies", lambda *given: False)
        from_pairs = weighted_info_nce(x, y, 14.3, terms=terms, backend="chunked")
    torch.testing.assert_close(from_histogram, from_pairs, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no GPU")
def test_weights_do_not_depend_on_tf32():
    table = -3 * torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    exact = sums(4096, 64, table, torch.float64)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = sums(4096, 64, table)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    torch.testing.assert_close(found.rows[IMPORTANCE].double(), exact.rows[IMPORTANCE], rtol=1e-6, atol=1e-6)


def test_pairs_above_a_margin_are_not_counted_in_the_histogram():
    n, k = 40, 3
    generator = torch.Generator().manual_seed(0)
    labels, table = torch.arange(n) % k, -torch.rand(k, k, generator=generator)
    terms = LossTerms(image_labels=labels, image_table=table, normalize=True, margin=0.0)
    x, y = features(n, 6)
    expected = naive_treated(x, y, 5.0, 0.0, table[labels][:, labels], normalize=True, margin=0.0)
    for backend in ("torch", "chunked"):
        assert abs(float(weighted_info_nce(x, y, 5.0, terms=terms, backend=backend)) - expected) < 1e-6
