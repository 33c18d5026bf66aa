"""The chunked backend against the torch backend: gradients, shapes, precision, memory."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.functional import Candidates, weighted_info_nce
from clip_negatives.losses.kernels import chunked as chunked_backend
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import PairSums
from tests.info_nce import BACKENDS, LargestTensor, dense, features, gradients, loss_of, naive_info_nce, weights

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_normalize = pytest.mark.parametrize("normalize", [False, True])
chunked = functools.partial(loss_of, backend="chunked")
reference = functools.partial(loss_of, backend="torch")


def _number(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


@each_backend
@each_normalize
def test_gradients_of_everything(backend, normalize):
    x, y = features(5, 3)
    terms = weights(5, normalize=normalize)

    def loss(x, y, scale, bias):
        return weighted_info_nce(x, y, scale, bias, terms=terms, backend=backend, chunk_size=2)

    assert torch.autograd.gradcheck(loss, (x, y, _number(3.0), _number(-0.5)))


@each_backend
@each_normalize
def test_gradients_of_rows_against_the_features_of_all(backend, normalize):
    (x, y), (all_x, all_y) = features(3, 3), features(7, 3, seed=1)
    everyone = weights(7, normalize=normalize)
    mine = everyone.take(torch.arange(2, 5))

    def loss(x, y, all_x, all_y, scale, bias):
        candidates = Candidates(all_x, all_y, everyone, 2)
        return weighted_info_nce(x, y, scale, bias, terms=mine, candidates=candidates, backend=backend, chunk_size=2)

    assert torch.autograd.gradcheck(loss, (x, y, all_x, all_y, _number(3.0), _number(-0.5)))


KEPT_BLOCKS = {
    "plain": LossTerms(),
    "weights": weights(9),
    "normalized": weights(9, normalize=True),
    "hardness": dataclasses.replace(weights(9), hardness=0.5),
    "margin": dataclasses.replace(weights(9), margin=0.05),
    "groups": LossTerms(groups=torch.arange(9) // 2),
    "targets": LossTerms(target_factors=torch.linspace(-1, 1, 18).view(9, 2), target_mass=0.3),
    "weights and targets": weights(9, normalize=True).replace(target_factors=torch.ones(9, 1), target_mass=0.3),
}


@pytest.mark.parametrize("name", KEPT_BLOCKS)
@pytest.mark.parametrize("columns_too", [True, False])
def test_a_kept_block_equals_a_recomputed_block(name, columns_too):
    x, y = (side.detach() for side in features(9, 3))
    terms = KEPT_BLOCKS[name]
    limits = None if terms.margin is None else (x * y).sum(1) + terms.margin
    column_limits = limits if columns_too else None
    pairs = Pairs(terms, terms, limits, column_limits, columns_too=columns_too, importance=terms.normalized, count=True)
    inputs, kept = Inputs(x, y, torch.tensor(5.0), torch.tensor(-1.0)), list[torch.Tensor]()
    sums = chunked_backend.forward(inputs, pairs, kept=kept)
    assert len(kept) == 1 + terms.targeted
    grads = PairSums(*(torch.rand_like(side) for side in sums))
    recomputed = chunked_backend.backward(inputs, pairs, sums, grads, (True, True))
    for _ in range(2):  # as with retain_graph=True
        from_kept = chunked_backend.backward(inputs, pairs, sums, grads, (True, True), kept=kept)
        assert all(map(torch.equal, from_kept, recomputed))


def test_several_blocks_are_not_kept():
    x, y = (side.detach() for side in features(9, 3))
    kept = list[torch.Tensor]()
    chunked_backend.forward(Inputs(x, y, torch.tensor(5.0), None), Pairs.of(LossTerms(), LossTerms()), chunk_size=4, kept=kept)
    assert not kept


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 21),
    d=st.integers(1, 9),
    k=st.integers(1, 4),
    chunk=st.integers(1, 24),
    seed=st.integers(0, 99),
    parts=st.sampled_from(["", "i", "t", "f", "it", "itf"]),
    normalize=st.booleans(),
)
def test_equals_the_torch_backend_for_any_shape_and_chunk(n, d, k, chunk, seed, parts, normalize):
    x, y = features(n, d, seed)
    scale, bias = _number(14.3), _number(-2.0)
    terms = weights(n, k=k, seed=seed, parts=parts, normalize=normalize, drop=0.4) if parts else None
    ours, theirs = chunked(x, y, scale, bias, terms=terms, chunk_size=chunk), reference(x, y, scale, bias, terms=terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for one, other in zip(gradients(ours, x, y, scale, bias), gradients(theirs, x, y, scale, bias), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@each_normalize
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_is_no_less_exact_than_torch_in_every_precision(dtype, scale, normalize):
    x, y = features(61, 24, dtype=dtype)
    terms = weights(61, normalize=normalize)
    exact = [x.detach().double().requires_grad_(), y.detach().double().requires_grad_(), _number(scale)]
    truth = reference(*exact, terms=terms)
    given_ = [x, y, _number(scale, torch.float32)]
    autocast = functools.partial(torch.autocast, "cpu", dtype, enabled=dtype != torch.float32)
    with autocast():
        ours, theirs = chunked(*given_, terms=terms, chunk_size=16), reference(*given_, terms=terms)
    pairs = zip(
        [truth, *gradients(truth, *exact)],
        [ours, *gradients(ours, *given_)],
        [theirs, *gradients(theirs, *given_)],
        strict=True,
    )
    for true, our, their in pairs:
        size = true.abs().max()
        our_error, their_error = (our.double() - true).abs().max(), (their.double() - true).abs().max()
        # Beside torch's own error: one rounding of a logit as large as the scale, and one of what is handed over.
        tolerance = torch.finfo(torch.float32).eps * scale + torch.finfo(our.dtype).eps + 1e-6
        assert our_error <= their_error + tolerance * size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_gradients_have_the_dtype_of_their_input_and_the_loss_that_of_the_sums(dtype):
    x, y = features(5, 4, dtype=dtype)
    scale = _number(9.0, torch.float32)
    loss = chunked(x, y, scale)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert [gradient.dtype for gradient in gradients(loss, x, y, scale)] == [dtype, dtype, torch.float32]


def test_a_small_loss_keeps_its_digits():
    # Every negative is e^-30 of its positive: a float32 log-sum-exp minus the positive would cancel to 0.
    x = torch.eye(4, requires_grad=True)
    loss = chunked(x, x.detach(), 30.0)
    assert loss.item() == pytest.approx(3 * torch.tensor(-30.0, dtype=torch.float64).exp().item(), rel=1e-5)


@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_opposite_features_at_a_high_scale_neither_overflow_nor_vanish(scale):
    x, _ = features(9, 4, dtype=torch.float32)
    y = (-x).detach().requires_grad_()
    ours = chunked(x, y, scale, chunk_size=4)
    theirs = reference(x.double(), y.double(), scale)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)
    for one, other in zip(gradients(ours, x, y), gradients(theirs, x, y), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * scale)


@each_backend
def test_a_very_low_weight_of_a_whole_row_is_normalised_like_any_other(backend):
    x, y = features(6, 4, dtype=torch.float32)
    low = weights(6, parts="i", normalize=True, drop=0.0)
    table = low.image_table.clone()
    table[0] -= 500.0  # exp(-500) is 0 in float32
    terms = type(low)(image_labels=low.image_labels, image_table=table, normalize=True)
    loss = weighted_info_nce(x, y, 5.0, terms=terms, backend=backend, chunk_size=2)
    shifted = naive_info_nce(x.double(), y.double(), 5.0, 0.0, dense(terms, 6), True)
    assert loss.item() == pytest.approx(shifted, rel=1e-5)


@each_normalize
def test_duplicates_and_strided_features_are_as_good_as_others(normalize):
    x, y = features(6, 8)
    x, y = x.detach()[:, ::2].repeat(2, 1), y.detach().T.contiguous().T[:, 1::2].repeat(2, 1)
    wide = torch.empty(12, 8, dtype=torch.float64)
    wide[:, ::2] = x
    strided = wide[:, ::2].requires_grad_()
    terms = weights(12, normalize=normalize)
    ours, theirs = chunked(strided, y, 9.0, terms=terms, chunk_size=5), reference(x, y, 9.0, terms=terms)
    torch.testing.assert_close(ours, theirs)
    strided_gradient = gradients(ours, strided)[0]
    plain = x.clone().requires_grad_()
    torch.testing.assert_close(strided_gradient, gradients(reference(plain, y, 9.0, terms=terms), plain)[0])


@pytest.mark.parametrize("which", range(4))
def test_each_input_alone_can_ask_for_a_gradient(which):
    x, y = features(6, 4)
    inputs = [x.detach(), y.detach(), torch.tensor(5.0).double(), torch.tensor(-1.0).double()]
    inputs[which].requires_grad_()
    terms = weights(6)
    ours = gradients(chunked(*inputs, terms=terms, chunk_size=4), inputs[which])[0]
    theirs = gradients(reference(*inputs, terms=terms), inputs[which])[0]
    torch.testing.assert_close(ours, theirs)


def test_needs_no_gradient():
    x, y = features(6, 4)
    with torch.no_grad():
        assert not chunked(x, y, 5.0).requires_grad
    assert not chunked(x.detach(), y.detach(), 5.0).requires_grad


@pytest.mark.parametrize("scale", [5.0, 100.0, 300.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_far_apart_do_not_share_exponentials(scale, weighted):
    # Images 0 and 3 are opposite to every text, the others like every text: sums lie 2 * scale apart.
    x = F.normalize(torch.tensor([[-1.0, 0.02], [1.0, 0.0], [1.0, 0.1], [-0.9, 0.2]]), dim=1)
    y = F.normalize(torch.tensor([[1.0, -0.02], [1.0, 0.05], [1.0, 0.3], [0.8, 0.6]]), dim=1)
    terms = LossTerms(image_labels=torch.tensor([0, 0, 1, 1]), image_table=torch.tensor([[0.0, -150.0], [1.0, 0.0]]))
    how = {"terms": terms if weighted else None, "groups": torch.tensor([0, 1, 1, 2])}
    exact = [side.double().requires_grad_() for side in (x, y)]
    truth = gradients(reference(*exact, scale, **how), *exact)
    single = [side.requires_grad_() for side in (x, y)]
    for one, other in zip(gradients(chunked(*single, scale, **how), *single), truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_the_outer_gradient_is_handed_on():
    x, y = features(6, 4)
    for one, other in zip(gradients(chunked(x, y, 5.0) * 7, x, y), gradients(chunked(x, y, 5.0), x, y), strict=True):
        torch.testing.assert_close(one, other * 7)


@pytest.mark.parametrize("columns_too", [False, True])
@pytest.mark.parametrize("hardness", [0.0, 1.0])
def test_never_holds_a_matrix_of_all_pairs(columns_too, hardness):
    n, chunk, d = 128, 16, 4
    x, y = (side.detach() for side in features(n, d, dtype=torch.float32))
    terms = weights(n)
    terms = terms.replace(hardness=hardness)
    pairs = Pairs.of(terms, terms, columns_too=columns_too)
    with LargestTensor() as largest:
        inputs = Inputs(x, y, torch.tensor(5.0), None)
        sums = chunked_backend.forward(inputs, pairs, chunk_size=chunk)
        grads = PairSums(*map(torch.ones_like, sums))
        chunked_backend.backward(inputs, pairs, sums, grads, (True, True), chunk_size=chunk)
    assert largest.elements == chunk * n, "the logits of a chunk of rows"
