"""Targets by similarity, T = (1 - m) I + m q: the loss equals loops over Python floats, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import ClipLoss
from torch import Tensor

from clip_negatives.errors import InputError
from clip_negatives.losses.functional import Candidates, Extras, weighted_info_nce
from clip_negatives.losses.kernels import chunked, op
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import PairSums
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from clip_negatives.terms import LossTerms
from tests.info_nce import BACKENDS, LargestTensor, dense, features, gradients, weights

SCALE, BIAS, MASS = 4.0, -1.0, 0.3
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def factors(n: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed + 7))


def targets(n: int, seed: int = 0, mass: float = MASS) -> LossTerms:
    return LossTerms(target_factors=factors(n, seed), target_mass=mass)


def scalars() -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (SCALE, BIAS))


def naive(x: Tensor, y: Tensor, f: Tensor, mass: float, b: Tensor) -> float:
    """Return the loss by loops: ``-sum_j T_ij z_ij + log sum_j exp(z_ij + b_ij)``, both directions averaged."""
    n, s, f = len(x), (x.double() @ y.double().T).tolist(), f.double().tolist()
    total = 0.0
    for transposed in (False, True):
        for i in range(n):
            z = [SCALE * (s[j][i] if transposed else s[i][j]) + BIAS for j in range(n)]
            weight = [float(b[j, i] if transposed else b[i, j]) for j in range(n)]
            others = [j for j in range(n) if j != i]
            shares = [math.exp(sum(p * q for p, q in zip(f[i], f[j], strict=True))) for j in others]
            target = z[i]
            if others:
                mean = sum(share * z[j] for share, j in zip(shares, others, strict=True)) / sum(shares)
                target = (1 - mass) * z[i] + mass * mean
            total += math.log(math.exp(z[i]) + sum(math.exp(z[j] + weight[j]) for j in others)) - target
    return total / (2 * n)


@each_backend
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 9),
    chunk=st.integers(1, 12),
    seed=st.integers(0, 99),
    mass=st.sampled_from([0.05, 0.3, 1.0]),
    parts=st.sampled_from(["", "i", "itf"]),
)
def test_equals_loops_by_hand(backend: str, n: int, chunk: int, seed: int, mass: float, parts: str) -> None:
    x, y = features(n, 4, seed)
    terms = weights(n, seed=seed, parts=parts) if parts else LossTerms()
    expected = naive(x, y, factors(n, seed), mass, dense(terms, n))
    terms = terms.replace(target_factors=factors(n, seed), target_mass=mass)
    loss = weighted_info_nce(x, y, *scalars(), terms=terms, backend=backend, chunk_size=chunk)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@each_backend
@pytest.mark.parametrize("rectangle", [False, True])
def test_gradients_of_everything(backend: str, rectangle: bool) -> None:
    n, own = 6, slice(2, 5)
    x, y = features(n, 3)
    f, rates = factors(n), torch.linspace(0.0, 0.2, n, dtype=torch.float64)
    terms = weights(n, drop=0.1).replace(
        target_factors=f, target_mass=MASS, margin=0.15, hardness=0.5, positive_rate=rates, positive_weight=0.5
    )

    def loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        options = {"backend": backend, "chunk_size": 4}
        if rectangle:
            candidates = Candidates(x, y, terms, own.start)
            mine = terms.take(torch.arange(n)[own])
            return weighted_info_nce(x[own], y[own], scale, bias, terms=mine, candidates=candidates, **options)
        return weighted_info_nce(x, y, scale, bias, terms=terms, **options)

    assert torch.autograd.gradcheck(loss, (x, y, *scalars()), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_is_no_less_exact_than_torch(dtype: torch.dtype, size: float) -> None:
    """Factors of size 10 have scores hundreds apart, which share no exponential."""
    n = 61
    x, y = features(n, 24, dtype=dtype)
    terms = LossTerms(target_factors=factors(n, size=size), target_mass=MASS)
    exact = [side.detach().double().requires_grad_() for side in (x, y)]
    results = []
    for sides, backend in ((exact, "torch"), ((x, y), "chunked"), ((x, y), "torch")):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16 and sides is not exact):
            loss = weighted_info_nce(*sides, 14.3, terms=terms, backend=backend, chunk_size=16)
        results.append([loss, *gradients(loss, *sides)])
    for truth, ours, theirs in zip(*results, strict=True):
        errors = [float((part.detach().double() - truth.detach()).abs().max()) for part in (ours, theirs)]
        assert errors[0] <= errors[1] + (1e-5 + torch.finfo(ours.dtype).eps) * float(truth.detach().abs().max())


@each_backend
def test_no_mass_is_the_loss_of_open_clip(backend: str) -> None:
    x, y = features(7, 4, dtype=torch.float32)
    scale = torch.tensor(9.0, requires_grad=True)
    loss = NegativesClipLoss(terms=targets(7, mass=0.0), backend=backend)(
        x, y, scale, samples=BatchSamples(ids=torch.arange(7))
    )
    expected = ClipLoss()(x, y, scale)
    results = zip([loss, *gradients(loss, x, y, scale)], [expected, *gradients(expected, x, y, scale)], strict=True)
    for ours, theirs in results:
        assert torch.equal(ours, theirs) if backend == "torch" else torch.allclose(ours, theirs, atol=1e-6)


@each_backend
def test_order_and_modalities_change_nothing(backend: str) -> None:
    n = 8
    x, y = features(n, 4)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    terms = weights(n).replace(target_factors=factors(n), target_mass=MASS)
    options = {"backend": backend, "chunk_size": 3}
    loss = weighted_info_nce(x, y, *scalars(), terms=terms, **options)
    permuted = weighted_info_nce(x[order], y[order], *scalars(), terms=terms.take(order), **options)
    swapped = weighted_info_nce(y, x, *scalars(), terms=terms.transposed(), **options)
    for other in (permuted, swapped):
        torch.testing.assert_close(other, loss)
        for one, another in zip(gradients(loss, x, y), gradients(other, x, y), strict=True):
            torch.testing.assert_close(another, one)
        loss = weighted_info_nce(x, y, *scalars(), terms=terms, **options)


@each_backend
def test_parts_of_several_processes_average_to_the_whole(backend: str) -> None:
    n, half = 8, 4
    x, y = features(n, 4)
    terms, options = targets(n), {"backend": backend, "chunk_size": 3}
    whole = weighted_info_nce(x, y, *scalars(), terms=terms, **options)
    parts = []
    for start in (0, half):
        mine = slice(start, start + half)
        candidates = Candidates(x, y, terms, start)
        own = terms.take(torch.arange(n)[mine])
        parts.append(weighted_info_nce(x[mine], y[mine], *scalars(), terms=own, candidates=candidates, **options))
    torch.testing.assert_close(sum(parts) / 2, whole)


@each_backend
def test_images_alone_and_added_texts(backend: str) -> None:
    """Added texts are in the denominator and have no target."""
    n = 6
    x, y = features(n, 4)
    extra = features(3, 4, seed=1)[1].detach()
    options = {"text_anchors": False, "extra_texts": Extras(extra), "backend": backend, "chunk_size": 4}
    loss = weighted_info_nce(x, y, *scalars(), terms=targets(n), **options)
    scores = (factors(n) @ factors(n).T).double().fill_diagonal_(-torch.inf)
    target = (1 - MASS) * torch.eye(n) + MASS * scores.softmax(1)
    z = SCALE * x @ torch.cat([y, extra]).T + BIAS
    expected = F.cross_entropy(z, torch.cat([target, torch.zeros(n, 3)], 1))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients(loss, x, y), gradients(expected, x, y), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("columns_too", [False, True])
def test_chunked_never_holds_a_matrix_of_all_pairs(columns_too: bool) -> None:
    n, chunk = 128, 16
    x, y = (side.detach() for side in features(n, 4, dtype=torch.float32))
    pairs = Pairs.of(targets(n), targets(n), columns_too=columns_too)
    with LargestTensor() as largest:
        inputs = Inputs(x, y, torch.tensor(5.0), None)
        sums = chunked.forward(inputs, pairs, chunk_size=chunk)
        chunked.backward(inputs, pairs, sums, PairSums(*map(torch.ones_like, sums)), (True, True), chunk_size=chunk)
    assert largest.elements == chunk * n, "the logits of a chunk of rows"


def test_the_operator_describes_its_results() -> None:
    x, y = features(5, 4)
    pairs = Pairs.of(targets(5), targets(5))
    arguments = (x, y, *scalars(), op._tensors(pairs), 0, True, 0.0, False, False, False, "chunked", 2)
    torch.library.opcheck(torch.ops.clip_negatives.pair_sums.default, arguments)


def test_state_goes_into_a_loss_without_terms() -> None:
    first, second = NegativesClipLoss(terms=targets(9)), NegativesClipLoss()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.terms.target_factors, first.terms.target_factors)
    assert second.terms.target_mass == MASS
    with pytest.raises(InputError, match="another weighting"):
        NegativesClipLoss(terms=targets(9, mass=0.1)).load_state_dict(first.state_dict())


def test_a_state_written_before_targets_existed_is_read() -> None:
    state = NegativesClipLoss(terms=weights(9)).state_dict()
    del state["_extra_state"]["target_mass"]
    NegativesClipLoss(terms=weights(9)).load_state_dict(state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": torch.zeros(4, dtype=torch.int64)}, "groups and target_factors"),
        ({"target_mass": 1.5}, r"target_mass must be within 0 \.\. 1, got 1.5"),
        ({"target_factors": torch.zeros(3, 2)}, "target_factors has 3 samples, the batch has 4"),
        ({"target_factors": torch.zeros(4)}, "target_factors must have shape"),
        ({"target_factors": torch.zeros(4, 2, dtype=torch.int64)}, "target_factors must be floating-point"),
    ],
)
def test_terms_that_do_not_fit(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        weighted_info_nce(*features(4, 3), 5.0, terms=targets(4).replace(**fields))


def test_factors_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="target_factors must be within -100"):
        NegativesClipLoss(terms=LossTerms(target_factors=torch.full((4, 2), torch.nan), target_mass=MASS))
