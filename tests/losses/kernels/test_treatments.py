"""Margin, debiasing, hardness and groups: what each equals, alone and mixed, whichever backend computes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_negatives.errors import InputError
from clip_negatives.losses.functional import Candidates, Extras, weighted_info_nce
from tests.info_nce import BACKENDS, dense, features, gradients, loss_of, naive_treated, weights

each_backend = pytest.mark.parametrize("backend", BACKENDS)
SCALE = torch.tensor(4.0, dtype=torch.float64)

treatments = st.fixed_dictionaries(
    {},
    optional={
        "margin": st.sampled_from([-0.3, 0.0, 0.1]),
        "positive_rate": st.sampled_from([0.0, 0.05, 0.3]),
        "hardness": st.sampled_from([0.25, 1.0]),
        "groups": st.integers(1, 5),
        "attract": st.booleans(),
        "positive_weight": st.sampled_from([0.0, 0.5, 1.0]),
        "extra": st.integers(1, 5),
    },
)


@each_backend
@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), chunk=st.integers(1, 12), seed=st.integers(0, 99), weighted=st.booleans(), how=treatments)
def test_equals_loops_by_hand_in_every_mixture(backend, n, chunk, seed, weighted, how):
    x, y = features(n, 4, seed)
    terms = weights(n, seed=seed, normalize=seed % 2 == 0, parts=["i", "t", "it", "itf"][seed % 4]) if weighted else None
    if "groups" in how:
        generator = torch.Generator().manual_seed(seed)
        how = how | {"groups": torch.randint(how["groups"], (n,), generator=generator)}
    extra = features(how.pop("extra"), 4, seed + 1)[1].detach() if "extra" in how else None
    how_ours = {"terms": terms, "extra": extra, "backend": backend, "chunk_size": chunk, **how}
    ours = loss_of(x, y, SCALE, -1.0, **how_ours)
    if "groups" in how:
        how = how | {"groups": how["groups"].tolist()}
    expected = naive_treated(x, y, 4.0, -1.0, dense(terms, n), normalize=weighted and terms.normalize, extra=extra, **how)
    assert ours.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@each_backend
@pytest.mark.parametrize("which", ["margin", "positive_rate", "hardness", "groups", "removed", "positive_weight", "all"])
def test_gradients_of_everything(backend, which):
    n = 6
    x, y = features(n, 3)
    scale, bias = SCALE.clone().requires_grad_(), torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    how = {
        "margin": 0.15,
        "positive_rate": torch.linspace(0.0, 0.2, n, dtype=torch.float64),
        "hardness": 0.5,
        "groups": torch.tensor([0, 1, 0, 2, 3, 1]),
        "positive_weight": 0.0,
    }
    if which == "removed":
        how = {"groups": how["groups"], "attract": False}
    elif which != "all":
        how = {which: how[which]}
    terms = weights(n, drop=0.1)
    extra = features(5, 3, seed=1)[1]

    def loss(x, y, scale, bias, extra):
        x, y, extra = F.normalize(x, dim=1), F.normalize(y, dim=1), F.normalize(extra, dim=1)
        more = {"extra": extra, "backend": backend, "chunk_size": 4}
        return loss_of(x, y, scale, bias, terms=terms, **more, **how)

    # A pair that crosses the margin makes a step: keep the differences smaller than any distance to it.
    assert torch.autograd.gradcheck(loss, (x, y, scale, bias, extra), eps=1e-7, atol=1e-5)


@each_backend
def test_rows_of_each_process_against_all_average_to_the_whole(backend):
    n, half = 8, 4
    x, y = features(n, 4)
    groups = torch.tensor([0, 1, 2, 0, 1, 4, 4, 5])
    rates = torch.linspace(0.0, 0.2, n, dtype=torch.float64)
    terms = weights(n, normalize=True).replace(groups=groups, positive_rate=rates)
    extra = features(6, 4, seed=1)[1]
    how = {"margin": 0.2, "hardness": 0.5, "extra": extra, "backend": backend, "chunk_size": 3}
    whole = loss_of(x, y, SCALE, terms=terms, **how)
    parts = []
    for start in (0, half):
        mine = slice(start, start + half)
        parts.append(
            loss_of(
                x[mine],
                y[mine],
                SCALE,
                terms=terms.take(torch.arange(n)[mine]),
                candidates=Candidates(x, y, terms, start),
                **how,
            )
        )
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


@each_backend
def test_identities(backend):
    x, y = features(7, 4)
    plain = loss_of(x, y, SCALE, backend=backend)
    slopes = gradients(plain, x, y)
    for how in (
        {"margin": 2.0},
        {"positive_rate": 0.0},
        {"hardness": 0.0},
        {"groups": torch.arange(7)},
        {"groups": torch.arange(7), "attract": False},
        {"positive_weight": 1.0},
    ):
        found = loss_of(x, y, SCALE, backend=backend, **how)
        torch.testing.assert_close(found, plain)
        for one, other in zip(gradients(found, x, y), slopes, strict=True):
            torch.testing.assert_close(one, other)
    # One group for all: every pair is positive, so the loss is the cross-entropy to the uniform distribution.
    z = SCALE * x @ y.T
    uniform = -(F.log_softmax(z, 1).mean() + F.log_softmax(z, 0).mean()) / 2
    torch.testing.assert_close(loss_of(x, y, SCALE, groups=torch.zeros(7, dtype=torch.int64), backend=backend), uniform)


@each_backend
@pytest.mark.parametrize("weighted", [False, True])
def test_extra_texts_that_are_the_own_are_left_out(backend, weighted):
    """Every own text stands among the extra ones as well, and two of them are equal."""
    n, ids = 6, torch.tensor([0, 1, 2, 3, 4, 2])
    x, y = features(n, 4)
    further = features(n, 4, seed=1)[1]
    terms = weights(n, parts="it", normalize=False, drop=0.0) if weighted else None
    extra = Extras(further, ids, ids)
    found = weighted_info_nce(x, y, SCALE, terms=terms, extra_texts=extra, backend=backend, chunk_size=4)
    b, z, more = dense(terms, n), SCALE * x @ y.T, SCALE * x @ further.T
    b.fill_diagonal_(0.0)
    more = more.masked_fill(ids[:, None] == ids, -torch.inf)
    target = torch.arange(n)
    expected = (F.cross_entropy(torch.cat([z + b, more], 1), target) + F.cross_entropy((z + b).T, target)) / 2
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, x, y, further), gradients(expected, x, y, further), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "ids", [(None, torch.arange(2)), (torch.arange(2), torch.arange(2)), (torch.arange(3.0), torch.arange(2))]
)
def test_numbers_of_other_texts_are_refused(ids):
    x, y = features(3, 4)
    with pytest.raises(InputError, match="own_ids"):
        weighted_info_nce(x, y, SCALE, extra_texts=Extras(y[:2], *ids))


@each_backend
def test_extra_texts_that_are_too_near_leave_rows_without_negatives_finite(backend):
    x, y = features(4, 4)
    how = {"margin": -2.0, "hardness": 0.5, "extra": y.detach()[:2], "backend": backend}
    loss = loss_of(x, y, SCALE, **how)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, x, y))
    torch.testing.assert_close(loss, torch.zeros_like(loss))


@pytest.mark.parametrize(
    "extra", [torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, 4), torch.zeros(4).double(), torch.zeros(0, 4).double()]
)
def test_extra_texts_of_another_kind_are_refused(extra):
    with pytest.raises(InputError, match="Features of extra texts"):
        loss_of(*features(3, 4), SCALE, extra=extra)


@each_backend
def test_no_negative_left_is_finite(backend):
    x, y = features(5, 4)
    for how in (
        {"margin": -2.0},
        {"margin": -2.0, "positive_weight": 0.0},
        {"margin": -2.0, "hardness": 1.0, "positive_rate": 0.1},
        {"positive_rate": 0.99},
    ):
        loss = loss_of(x, y, torch.tensor(100.0, dtype=torch.float64), backend=backend, **how)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(loss, x, y))
