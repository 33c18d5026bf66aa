"""The fused kernels beyond single treatments: gradients of both signs, targets, blocks of columns, and launches."""

from __future__ import annotations

import pytest
import torch
from open_clip import ClipLoss

from clip_negatives.losses.functional import Candidates, weighted_info_nce
from clip_negatives.losses.kernels import fused, weight_sums
from clip_negatives.terms import LossTerms
from tests.info_nce import gradients, weights
from tests.losses.kernels.exactness import (
    CUDA,
    DEVICE,
    DTYPES,
    assert_no_less_exact_than_torch,
    needs_triton,
    problem,
    run,
    treated,
)

pytestmark = needs_triton
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def targets(n: int, length: int = 20, *, size: float = 3.0) -> LossTerms:
    """Return targets with scores up to about size^2."""
    generator = torch.Generator().manual_seed(n)
    vectors = torch.nn.functional.normalize(torch.randn(n, length, generator=generator), dim=1)
    return LossTerms(target_factors=(size * vectors).to(DEVICE), target_mass=0.3)


@pytest.mark.parametrize("which", ["none", "weighted", "hardness", "groups", "margin"])
@pytest.mark.parametrize("backend", ["triton", "chunked"])
def test_gradients_of_both_signs(which, backend):
    n = 40
    terms = weights(n).to(DEVICE) if which == "weighted" else LossTerms()
    terms = terms if which in ("none", "weighted") else terms.replace(**treated(n, which))
    coefficients = torch.randn(2 * n, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    sides = []
    for name, dtype in ((backend, torch.float32), ("torch", torch.float64)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in problem(n, 24, torch.float32)]
        losses = weighted_info_nce(*inputs, terms=terms, backend=name, reduction="none")
        sides.append(gradients((losses * coefficients).sum(), *inputs))
    for gradient, exact in zip(*sides, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-4)


@each_dtype
@pytest.mark.parametrize("chunk", [None, 32])
@pytest.mark.parametrize("which", ["none", "weighted", "hardness", "margin", "positive_rate"])
def test_targets(dtype, chunk, which):
    terms = targets(70)
    if which == "weighted":
        terms = weights(70, normalize=True).to(DEVICE).replace(target_factors=terms.target_factors, target_mass=0.3)
    elif which != "none":
        terms = terms.replace(**treated(70, which))
    assert_no_less_exact_than_torch(problem(70, 40, dtype), terms=terms, chunk_size=chunk)


def test_scores_that_are_far_apart():
    assert_no_less_exact_than_torch(problem(70, 40, torch.float32), terms=targets(70, size=30.0))


def test_targets_among_the_samples_of_all_processes():
    n, mine = 70, slice(20, 60)
    inputs, terms = problem(n, 24, torch.float32), targets(n)
    own = terms.take(torch.arange(n, device=DEVICE)[mine])

    def loss(inputs, backend):
        x, y, scale, bias = inputs
        options = {"terms": own, "candidates": Candidates(x, y, terms, 20), "backend": backend}
        value = weighted_info_nce(x[mine], y[mine], scale, bias, **options)
        return [value.detach(), *gradients(value, *inputs)]

    exact = loss([tensor.detach().double().requires_grad_() for tensor in inputs], "torch")
    for one, truth in zip(loss(inputs, "triton"), exact, strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["weighted", "groups", "targets"])
def test_blocks_of_columns_give_the_gradients_of_one_block(monkeypatch, which):
    n = 200
    inputs, terms = problem(n, 24, torch.float32), targets(n) if which == "targets" else weights(n).to(DEVICE)
    terms = terms.replace(**treated(n, which)) if which == "groups" else terms
    whole = run(inputs, "triton", terms=terms)
    shapes = []
    launched = fused.slopes.slopes_kernel

    class Spy:
        def __getitem__(self, grid):
            shapes.append(grid)
            return launched[grid]

    monkeypatch.setattr(fused.slopes, "slopes_kernel", Spy())
    monkeypatch.setattr(fused, "SLOPES_BYTES", 128 * 128 * 4)
    for one, other in zip(run(inputs, "triton", terms=terms), whole, strict=True):
        torch.testing.assert_close(one, other)
    assert len(shapes) == 4
    assert all(shape[0] <= (128 // 32) ** 2 for shape in shapes) or DEVICE == "cuda"


def test_weights_of_mean_one_from_a_histogram(monkeypatch):
    inputs, terms = problem(70, 24, torch.float32), weights(70, parts="it", normalize=True).to(DEVICE)
    in_tiles = run(inputs, "triton", terms=terms)
    monkeypatch.setattr("clip_negatives.losses.kernels.fused_loss.HISTOGRAM_PAIRS", 0)
    monkeypatch.setattr(weight_sums, "applies", lambda *given: True)
    for one, other in zip(run(inputs, "triton", terms=terms), in_tiles, strict=True):
        torch.testing.assert_close(one, other)


def launches(loss) -> int:
    from tests.losses.kernels.launches import Launches

    inputs = problem(64, 64, torch.float32)[:3]
    with Launches() as counted:
        gradients(loss(*inputs), *inputs)
    return len(counted.names)


@pytest.mark.parametrize("which", ["plain", "weighted", "normalized", "hardness"])
def test_a_step_launches_fewer_kernels_than_open_clips(which):
    terms = None if which == "plain" else weights(64, parts="it", normalize=which != "weighted").to(DEVICE)
    terms = terms.replace(hardness=0.5) if which == "hardness" else terms
    ours = launches(lambda *inputs: weighted_info_nce(*inputs, terms=terms, backend="triton"))
    assert 10 < ours < launches(ClipLoss())


@pytest.mark.skipif(not CUDA, reason="no GPU")
@pytest.mark.parametrize("normalize", [False, True])
def test_a_cuda_graph_captures_a_step(normalize):
    inputs, terms = problem(256, 64, torch.bfloat16)[:3], weights(256, parts="it", normalize=normalize).to(DEVICE)

    def step():
        loss = weighted_info_nce(*inputs, terms=terms, backend="triton")
        return [loss.detach(), *gradients(loss, *inputs)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        expected = step()  # compiles the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, expected))
