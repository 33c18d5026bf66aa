"""The fused kernels against float64: in the interpreter where there is no GPU, in small shapes, float32 and float16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_negatives.errors import UnsupportedError
from clip_negatives.interfaces import LossTerms
from clip_negatives.losses import backends
from clip_negatives.losses.backends import select_backend
from clip_negatives.losses.functional import Candidates, Extras, weighted_info_nce
from clip_negatives.losses.kernels import anchor_kernels, fused, op, slopes, tile_sums, totals, wide_tables
from clip_negatives.losses.kernels.pairs import Inputs, Pairs
from clip_negatives.losses.kernels.sums import PairSums
from clip_negatives.losses.module import NegativesClipLoss
from clip_negatives.step import BatchSamples
from tests.info_nce import dense, features, gradients, loss_of, naive_treated, weights
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

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
pytestmark = needs_triton


@each_dtype
@pytest.mark.parametrize("parts", ["", "i", "t", "f", "itf"])
@pytest.mark.parametrize("normalize", [False, True])
def test_log_weights(dtype, parts, normalize):
    terms = weights(70, parts=parts, normalize=normalize).to(DEVICE) if parts else None
    assert_no_less_exact_than_torch(problem(70, 40, dtype), terms=terms)


@each_dtype
@pytest.mark.parametrize("which", ["margin", "hardness", "positive_rate", "groups", "all"])
def test_treatments(dtype, which):
    terms = weights(50, normalize=True).to(DEVICE) if which == "all" else None
    assert_no_less_exact_than_torch(problem(50, 24, dtype), terms=terms, **treated(50, which))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    n=st.integers(1, 50),
    d=st.integers(2, 70),  # with one, all cosines are 1 or -1, and which side of a limit they are on is chance
    dtype=st.sampled_from(DTYPES),
    chunk=st.sampled_from([None, 1, 32, 40]),
    parts=st.sampled_from(["", "i", "it", "itf"]),
    which=st.sampled_from(["none", "margin", "hardness", "groups", "all"]),
    attract=st.sampled_from([None, False]),
    positive_weight=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 9),
)
def test_any_shape_and_mixture(n, d, dtype, chunk, parts, which, attract, positive_weight, seed):
    terms = weights(n, seed=seed, parts=parts, normalize=seed % 2 == 0).to(DEVICE) if parts else None
    inputs = problem(n, d, dtype, seed=seed)
    how = treated(n, which) | {"attract": attract, "positive_weight": positive_weight}
    assert_no_less_exact_than_torch(inputs, terms=terms, chunk_size=max(chunk, n // 8) if chunk else None, **how)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 40),
    rate=st.sampled_from([None, 0.0, 0.3]),
    attract=st.booleans(),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_equals_loops_by_hand(n, rate, attract, alpha, seed):
    x, y = (side.detach().float() for side in features(n, 5, seed))
    groups = torch.randint(1 + seed % 5, (n,), generator=torch.Generator().manual_seed(seed))
    how = {"positive_rate": rate, "attract": attract, "positive_weight": alpha}
    terms = weights(n, seed=seed, normalize=seed % 2 == 0) if seed % 3 else None
    on = {"terms": terms and terms.to(DEVICE), "groups": groups.to(DEVICE), "backend": "triton"}
    ours = loss_of(x.to(DEVICE), y.to(DEVICE), 4.0, -1.0, **on, **how)
    normalize = terms is not None and terms.normalize
    expected = naive_treated(x, y, 4.0, -1.0, dense(terms, n), normalize=normalize, groups=groups.tolist(), **how)
    assert ours.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_takes_the_precision_of_autocast():
    inputs, terms = problem(40, 16, torch.float32), weights(40, normalize=True).to(DEVICE)
    with torch.autocast(DEVICE, torch.float16):
        found = run(inputs, "triton", terms=terms)
    rounded = [tensor.detach().to(torch.float16) if tensor.ndim else tensor.detach() for tensor in inputs]
    expected = run([tensor.requires_grad_() for tensor in rounded], "triton", terms=terms)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=2e-3, atol=2e-3)
        assert one.dtype == torch.float32


def test_the_operators_are_described_to_torch_as_they_are():
    x, y, scale, bias = problem(9, 4, torch.float32)
    labels, table = torch.arange(9, device=DEVICE) % 3, torch.randn(3, 3, device=DEVICE)
    terms = LossTerms(image_labels=labels, image_table=table, text_labels=labels, text_table=table, groups=labels)
    options = (0, True, 0.5, True, True, True, "triton", None)
    arguments = (x, y, scale, bias, op._tensors(Pairs.of(terms, terms)), *options)
    torch.library.opcheck(torch.ops.clip_negatives.pair_sums.default, arguments)


@pytest.mark.parametrize("which", ["none", "all"])
def test_rectangles(which):
    n, mine = 70, slice(20, 60)
    inputs = problem(n, 24, torch.float32)
    terms = weights(n, normalize=True).to(DEVICE).replace(**treated(n, which))

    def loss(inputs, backend):
        x, y, scale, bias = inputs
        own = terms.take(torch.arange(n, device=DEVICE)[mine])
        candidates = Candidates(x, y, terms, 20)
        found = weighted_info_nce(x[mine], y[mine], scale, bias, terms=own, candidates=candidates, backend=backend)
        return [found.detach(), *gradients(found, *inputs)]

    exact = loss([tensor.detach().double().requires_grad_() for tensor in inputs], "torch")
    for one, truth in zip(loss(inputs, "triton"), exact, strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-4, atol=1e-5)


def test_all_pairs_but_one_removed_and_all_removed():
    for n_kept in (1, 0):
        table = torch.full((9, 9), -torch.inf)
        table[0, 5 : 5 + n_kept] = 0.0
        terms = LossTerms(image_labels=torch.arange(9), image_table=table).to(DEVICE)
        inputs = problem(9, 8, torch.float32)
        assert_no_less_exact_than_torch(inputs, terms=terms)
        loss = weighted_info_nce(*inputs, terms=terms, backend="triton")
        assert (loss > 0) == (n_kept == 1)


def test_duplicates_strides_and_one_sided_gradients():
    x, y, scale, bias = problem(40, 16, torch.float32)
    wide = torch.cat([x, x], 1).detach()[:, ::2].requires_grad_()
    assert_no_less_exact_than_torch([wide, wide.detach().clone().requires_grad_(), scale, bias])
    full = run([x, y, scale, bias], "triton")
    for which in range(4):
        inputs = [tensor.detach().requires_grad_(place == which) for place, tensor in enumerate((x, y, scale, bias))]
        (found,) = torch.autograd.grad(weighted_info_nce(*inputs, backend="triton"), inputs[which])
        assert torch.equal(found, full[1 + which])


def test_is_deterministic_and_leaves_its_inputs_alone():
    inputs, terms = problem(70, 24, torch.float32), weights(70).to(DEVICE)
    before = [tensor.detach().clone() for tensor in inputs]
    first, second = run(inputs, "triton", terms=terms), run(inputs, "triton", terms=terms)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, before, inputs))


def test_tables_too_large_to_be_expanded_are_read_directly(monkeypatch):
    inputs, terms = problem(70, 24, torch.float32), weights(70, k=5).to(DEVICE)
    wide = run(inputs, "triton", terms=terms)
    monkeypatch.setattr("clip_negatives.losses.kernels.problem.WIDE_TABLE_BYTES", 0)
    for one, other in zip(run(inputs, "triton", terms=terms), wide, strict=True):
        torch.testing.assert_close(one, other)


def test_memory_is_that_of_a_chunk():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for each in found if isinstance(found, (tuple, list)) else (found,):
                if isinstance(each, torch.Tensor) and each.is_floating_point():  # bytes are the interpreter's own
                    self.elements = max(self.elements, each.numel())
            return found

    n, chunk = 256, 32
    x, y, scale, _ = (tensor.detach() for tensor in problem(n, 8, torch.float32))
    pairs = Pairs.of(LossTerms(), LossTerms())
    with Largest() as largest:
        inputs = Inputs(x, y, scale, None)
        sums = fused.forward(inputs, pairs, chunk_size=chunk)
        fused.backward(inputs, pairs, sums, PairSums(*map(torch.ones_like, sums)), (True, True), chunk_size=chunk)
    assert largest.elements == chunk * n


def test_compiles_as_one_graph():
    inputs, terms = problem(40, 16, torch.float32), weights(60, normalize=True)
    loss = NegativesClipLoss(terms=terms, backend="triton").to(DEVICE)
    index = torch.arange(60)[10:50]  # on the CPU, as a loader has it
    expected = run(inputs, "triton", terms=terms.take(index).to(DEVICE))
    found = torch.compile(loss, backend="aot_eager", fullgraph=True)(
        *inputs, samples=BatchSamples(ids=index.to(loss.image_labels.device))
    )
    for one, other in zip([found.detach(), *gradients(found, *inputs)], expected, strict=True):
        torch.testing.assert_close(one, other)


def test_kernels_start_on_the_device_of_the_features(monkeypatch):
    current, seen = [], []

    class Guard:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *error):
            current.pop()

    class Spy:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            seen.append(list(current))
            return self.kernel[grid]

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    modules = tile_sums, totals, wide_tables, slopes, anchor_kernels
    kernels = [(module, name) for module in modules for name in vars(module) if name.endswith("_kernel")]
    for module, name in kernels:
        monkeypatch.setattr(module, name, Spy(getattr(module, name)))
    inputs, terms = problem(9, 8, torch.float32), weights(9).to(DEVICE)
    run(inputs, "triton", terms=terms)
    assert len(seen) > len(kernels)  # the second launch of the sums
    assert all(devices == [inputs[0].device] for devices in seen)


def test_weighted_losses_are_fused_from_fewer_pairs_on(monkeypatch):
    monkeypatch.setattr(backends, "triton_obstacle", lambda *given: None)
    chosen = [select_backend(torch.device("cuda"), 4096, 4096, weighted=weighted)[0] for weighted in (False, True)]
    assert chosen == ["torch", "triton"]
    assert select_backend(torch.device("cuda"), 1024, 1024, weighted=True)[0] == "torch"


def test_says_what_is_missing():
    x = torch.eye(4, dtype=torch.float64, device=DEVICE)
    with pytest.raises(UnsupportedError, match=r"it does not support torch\.float64\. Use backend 'auto'"):
        weighted_info_nce(x, x, 1.0, backend="triton")
    assert select_backend(torch.device(DEVICE), 9999, 9999)[0] == ("triton" if CUDA else "chunked")


@pytest.mark.parametrize("positive", [False, True])
def test_extra_texts_and_images(positive):
    inputs = problem(21, 20, torch.float32)
    texts, images = (
        features(n, 20, seed=seed, dtype=torch.float32)[1].detach().to(DEVICE)
        for n, seed in ((42 if positive else 19, 1), (9, 2))
    )
    ids, text_ids, image_ids = (torch.arange(*limits).to(DEVICE) for limits in ((21,), (10, 10 + len(texts)), (9,)))
    found = []
    for backend, dtype in (("triton", torch.float32), ("chunked", torch.float64)):
        further = [extra.to(dtype).requires_grad_() for extra in (texts, images)]
        leaves = [*(tensor.detach().to(dtype).requires_grad_() for tensor in inputs), *further]
        terms = weights(21, parts="it", normalize=True).to(DEVICE).replace(hardness=0.5, margin=0.3)
        extras = {"extra_texts": Extras(further[0], ids, text_ids, -0.5, positive)}
        extras["extra_images"] = Extras(further[1], ids, image_ids, -0.5)
        loss = weighted_info_nce(*leaves[:4], **extras, backend=backend, terms=terms)
        found.append([loss.detach(), *gradients(loss, *leaves)])
    for one, truth in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-4, atol=1e-5)
