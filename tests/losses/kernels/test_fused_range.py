"""The fused kernels where numbers are very large or very small: scales, rows far below others, low weights, float16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip_negatives.interfaces import LossTerms
from clip_negatives.losses.functional import weighted_info_nce
from tests.info_nce import features, gradients, loss_of, weights
from tests.losses.kernels import exactness
from tests.losses.kernels.exactness import DEVICE, assert_no_less_exact_than_torch, needs_triton, problem, run

pytestmark = needs_triton


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_extreme_scales(scale):
    assert_no_less_exact_than_torch(problem(40, 8, torch.float32, scale=scale))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("scale", [70.0, 100.0, 400.0])
def test_a_row_or_column_far_below_its_tile_is_not_lost(scale, swapped):
    # All in one tile: image 0 is opposite to every text, its own is the worst; the others are like every text.
    x = F.normalize(torch.tensor([[-1.0, 0.02], [1.0, 0.0], [1.0, 0.1], [0.9, 0.2]]), dim=1)
    y = F.normalize(torch.tensor([[1.0, -0.02], [1.0, 0.05], [1.0, 0.3], [0.8, 0.6]]), dim=1)
    sides = (y, x) if swapped else (x, y)
    inputs = [tensor.to(DEVICE).requires_grad_() for tensor in (*sides, torch.tensor(scale), torch.tensor(0.0))]
    assert_no_less_exact_than_torch(inputs)
    groups = torch.tensor([0, 0, 1, 1], device=DEVICE)  # the mates of image 0 are as far below
    assert_no_less_exact_than_torch(inputs, groups=groups, margin=0.1)


@pytest.mark.parametrize("low", [-50.0, -120.0, -200.0, -500.0])
@pytest.mark.parametrize("hardness", [0.0, 0.5])
def test_very_low_weights_of_a_row_are_not_lost(low, hardness):
    # Normalised, they are as if they were not low.
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    table = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    inputs = problem(6, 4, torch.float32)
    found = []
    for level in (0.0, low):
        lowered = table.clone()
        lowered[0] += level
        terms = LossTerms(image_labels=labels, image_table=lowered, normalize=True).to(DEVICE)
        found.append(run(inputs, "triton", terms=terms, hardness=hardness))
        assert_no_less_exact_than_torch(inputs, terms=terms, hardness=hardness)


@pytest.mark.parametrize("parts", ["i", "it"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_constant_added_to_tables_changes_nothing(dtype, parts):
    inputs, terms = problem(40, 16, dtype), weights(40, parts=parts, normalize=True)
    expected = run(inputs, "triton", terms=terms.to(DEVICE))
    for added in (50.0, 300.0):
        more = terms.replace(image_table=terms.image_table + added)
        for one, other in zip(run(inputs, "triton", terms=more.to(DEVICE)), expected, strict=True):
            # A logarithm of the size of the constant has so many digits less.
            torch.testing.assert_close(one.float(), other.float(), rtol=1e-3, atol=4 * added * torch.finfo(torch.float32).eps)


def test_a_huge_outer_gradient_does_not_overflow_float16():
    x, y, scale, bias = problem(40, 16, torch.float16)
    plain = run([x, y, scale, bias], "triton")
    loss = weighted_info_nce(x, y, scale, bias, backend="triton") * 2.0**12  # what a GradScaler does
    for one, other in zip(gradients(loss, x, y), plain[1:3], strict=True):
        torch.testing.assert_close(one, other * 2.0**12, rtol=1e-2, atol=2.0**12 * 1e-6)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-30])
def test_an_outer_gradient_of_any_sign_and_size(factor):
    inputs = problem(40, 16, torch.float32)
    plain = run(inputs, "triton")
    loss = weighted_info_nce(*inputs, backend="triton") * factor
    for one, other in zip(gradients(loss, *inputs), plain[1:], strict=True):
        torch.testing.assert_close(one, other * factor, rtol=1e-5, atol=abs(factor) * 1e-6)


@pytest.mark.parametrize("hardness", [0.0, 4.0])
def test_slopes_of_float16_neither_vanish_nor_overflow(hardness):
    # Two of the texts are exchanged, so that their gradients are up to 100000 times those of the others.
    x = features(128, 16)[0].detach().half().to(DEVICE)
    y = x.clone()
    y[[0, 1]] = x[[1, 0]]
    found = {}
    for dtype, backend in ((torch.float64, "torch"), (torch.float16, "chunked"), (torch.float16, "triton")):
        sides = [side.to(dtype).requires_grad_() for side in (x, y)]
        loss = loss_of(*sides, torch.tensor(40.0, device=DEVICE), hardness=hardness, backend=backend)
        found[backend] = gradients(loss * 2.0**18, *sides)  # as a GradScaler does, so that gradients themselves do not vanish
    for exact, theirs, ours in zip(*found.values(), strict=True):
        off, allowed = (float((gradient.double() - exact)[2:].norm()) for gradient in (ours, theirs))
        assert off <= 1.5 * allowed


def test_gradients_that_are_a_little_off_are_found(monkeypatch):
    inputs = problem(50, 24, torch.float16)
    assert_no_less_exact_than_torch(inputs)

    def off(inputs, backend, **how):
        return [found * (1.01 if backend == "triton" and found.ndim else 1.0) for found in run(inputs, backend, **how)]

    monkeypatch.setattr(exactness, "run", off)
    with pytest.raises(AssertionError, match="x"):
        assert_no_less_exact_than_torch(inputs)
