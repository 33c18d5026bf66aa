"""A field that is added to the loss terms in one line reaches the module, the checks, the operator and the kernel."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.losses.functional import weighted_info_nce
from clip_negatives.losses.kernels import chunked, op
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.terms import LossTerms, tensor_field, with_tensor_fields
from tests.info_nce import features, gradients, weights

N = 9


@with_tensor_fields
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TermsWithPopularity(LossTerms):
    """Loss terms with one more field."""

    popularity: Tensor | None = tensor_field("sample", "N")


def terms_with_popularity(n: int = N) -> TermsWithPopularity:
    return TermsWithPopularity(**{**weights(n).tensors(), "popularity": torch.linspace(0.5, 2.0, n)})


def test_it_is_taken_mapped_and_moved_with_the_others() -> None:
    terms, index = terms_with_popularity(), torch.tensor([4, 0, 7])
    assert torch.equal(terms.take(index).popularity, terms.popularity[index])
    assert terms.to("meta").popularity.device.type == "meta"
    assert TermsWithPopularity(popularity=terms.popularity).n_samples == N
    assert "popularity" in terms.tensors()
    assert "popularity" not in terms.options()


@pytest.mark.parametrize(
    ("popularity", "message"),
    [
        (torch.ones(N + 1), "terms.popularity has 10 samples, the batch has 9"),
        (torch.ones(N, 1), "terms.popularity must have shape"),
        (torch.ones(N, dtype=torch.int64), "terms.popularity must be floating-point"),
        (torch.ones(N, device="meta"), "terms.popularity is on meta"),
    ],
)
def test_it_is_checked(popularity: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weighted_info_nce(*features(N, 4), 5.0, terms=terms_with_popularity().replace(popularity=popularity))


def test_it_is_a_buffer_of_the_module_and_goes_through_a_file() -> None:
    loss, stored = NegativesClipLoss(terms=terms_with_popularity()), io.BytesIO()
    assert loss.to("meta").popularity.device.type == "meta"
    loss = NegativesClipLoss(terms=terms_with_popularity())
    torch.save(loss.state_dict(), stored)
    stored.seek(0)
    loaded = NegativesClipLoss(terms=TermsWithPopularity())
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(loaded.terms.popularity, loss.terms.popularity)


def test_the_operator_hands_it_to_a_kernel_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "LossTerms", TermsWithPopularity)
    read, real = [], chunked.forward

    def reads_popularity(inputs, pairs, **options):
        read.append((pairs.rows.popularity, pairs.columns.popularity))
        return real(inputs, pairs, **options)

    monkeypatch.setattr(chunked, "forward", reads_popularity)
    x, y = features(4, 8)
    terms, index = terms_with_popularity(), torch.tensor([8, 1, 3, 0])
    loss = NegativesClipLoss(terms=terms, backend="chunked")(x, y, torch.tensor(5.0), samples=BatchSamples(ids=index))
    assert [torch.equal(part, terms.popularity[index]) for part in read[0]] == [True, True]
    plain = NegativesClipLoss(terms=weights(N), backend="torch")(x, y, torch.tensor(5.0), samples=BatchSamples(ids=index))
    for one, other in zip(gradients(loss, x, y), gradients(plain, x, y), strict=True):
        torch.testing.assert_close(one, other)
