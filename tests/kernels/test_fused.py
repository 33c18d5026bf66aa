"""The fused kernels against float64: in the interpreter where there is no GPU, in small shapes, float32 and float16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_negatives.errors import UnsupportedError
from clip_negatives.functional import select_backend, weighted_info_nce
from clip_negatives.interfaces import LossTerms
from clip_negatives.kernels import fused
from clip_negatives.kernels.pairs import Pairs, PairSums, Side
from clip_negatives.kernels.support import interpreted
from tests.info_nce import features, gradients, weights

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# The interpreter is silently wrong for products of bfloat16.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * CUDA
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

pytestmark = [
    pytest.mark.skipif(not (CUDA or interpreted()), reason="neither a GPU nor TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning"),  # the interpreter, of an empty sum
    pytest.mark.gpu,  # where there is one; without, the interpreter runs them
]


def problem(n, d, dtype, *, seed=0, scale=10.0, on=DEVICE):
    """Return features, scale and bias that ask for gradients; float64 ones hold the very values of the others."""
    x, y = (side.detach().to(dtype if dtype != torch.float64 else torch.float32) for side in features(n, d, seed))
    numbers = torch.tensor(scale), torch.tensor(-1.5)
    return [tensor.to(on).requires_grad_() for tensor in (x, y, *numbers)]


def run(inputs, backend, **how):
    loss = weighted_info_nce(*inputs, backend=backend, **how)
    return [loss.detach(), *gradients(loss, *inputs)]


def assert_no_less_exact_than_torch(inputs, **how):
    """Assert for the loss and every gradient that |kernel - float64| <= |torch - float64| + what rounding explains."""
    exact = run([tensor.detach().double().requires_grad_() for tensor in inputs], "chunked", **how)
    ours, theirs = run(inputs, "triton", **how), run(inputs, "torch", **how)
    epsilon = torch.finfo(inputs[0].dtype).eps
    largest = max(float(gradient.abs().max()) for gradient in exact[1:])
    for name, one, other, truth in zip(["loss", "x", "y", "scale", "bias"], ours, theirs, exact, strict=True):
        size = float(truth.abs().max()) if name in ("loss", "x", "y") else largest
        off, allowed = (float((found.double() - truth).abs().max()) for found in (one, other))
        assert off <= allowed + 64 * epsilon * max(size, 1e-3), (name, off, allowed, size)
        assert one.dtype == other.dtype or name == "loss"


def treated(n, which):
    """Return one treatment of pairs, or all."""
    how = {
        "margin": 0.1,
        "hardness": 0.5,
        "positive_rate": torch.linspace(0, 0.2, n, device=DEVICE),
        "groups": (torch.arange(n) // 3).to(DEVICE),
    }
    return how if which == "all" else {which: how[which]} if which in how else {}


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


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    n=st.sampled_from([1, 2, 31, 32, 33, 50]),
    d=st.sampled_from([1, 16, 32, 33, 64]),
    chunk=st.sampled_from([None, 32, 40]),
    parts=st.sampled_from(["", "it", "itf"]),
    which=st.sampled_from(["none", "margin", "hardness", "groups", "all"]),
    seed=st.integers(0, 9),
)
def test_any_shape_and_mixture(n, d, chunk, parts, which, seed):
    terms = weights(n, seed=seed, parts=parts, normalize=seed % 2 == 0).to(DEVICE) if parts else None
    inputs = problem(n, d, torch.float32, seed=seed)
    assert_no_less_exact_than_torch(inputs, terms=terms, chunk_size=chunk, **treated(n, which))


@pytest.mark.parametrize("which", ["none", "all"])
def test_rectangles(which):
    n, mine = 70, slice(20, 60)
    inputs = problem(n, 24, torch.float32)
    terms = weights(n, normalize=True).to(DEVICE)
    how = treated(n, which)
    if "positive_rate" in how:
        how["positive_rate"] = how["positive_rate"][mine]
    if "groups" in how:
        how |= {"all_groups": how["groups"], "groups": how["groups"][mine]}
    how |= {"terms": terms.take(torch.arange(n, device=DEVICE)[mine]), "all_terms": terms, "positive_offset": 20}

    def loss(inputs, backend):
        x, y, scale, bias = inputs
        found = weighted_info_nce(
            x[mine], y[mine], scale, bias, all_image_features=x, all_text_features=y, backend=backend, **how
        )
        return [found.detach(), *gradients(found, *inputs)]

    exact = loss([tensor.detach().double().requires_grad_() for tensor in inputs], "torch")
    for one, truth in zip(loss(inputs, "triton"), exact, strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_extreme_scales(scale):
    assert_no_less_exact_than_torch(problem(40, 8, torch.float32, scale=scale))


def test_a_row_far_below_its_tile_is_not_lost():
    # All in one tile: text 0 is the image of sample 1 itself, while image 0 is opposite to every text but slightly.
    x = torch.nn.functional.normalize(torch.tensor([[-1.0, 0.02], [1.0, 0.0], [1.0, 0.1], [0.9, 0.2]]), dim=1).to(DEVICE)
    inputs = [x.requires_grad_(), x.detach().roll(1, 0).requires_grad_(), torch.tensor(70.0), torch.tensor(0.0)]
    inputs[2:] = [number.to(DEVICE).requires_grad_() for number in inputs[2:]]
    assert_no_less_exact_than_torch(inputs)


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


def test_a_huge_outer_gradient_does_not_overflow_float16():
    x, y, scale, bias = problem(40, 16, torch.float16)
    plain = run([x, y, scale, bias], "triton")
    loss = weighted_info_nce(x, y, scale, bias, backend="triton") * 2.0**12  # what a GradScaler does
    for one, other in zip(gradients(loss, x, y), plain[1:3], strict=True):
        torch.testing.assert_close(one, other * 2.0**12, rtol=1e-2, atol=2.0**12 * 1e-6)


def test_tables_too_large_to_be_expanded_are_read_directly(monkeypatch):
    inputs, terms = problem(70, 24, torch.float32), weights(70, k=5).to(DEVICE)
    wide = run(inputs, "triton", terms=terms)
    monkeypatch.setattr(fused, "WIDE_TABLE_BYTES", 0)
    assert all(map(torch.equal, wide, run(inputs, "triton", terms=terms)))


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
    pairs = Pairs(Side(), Side())
    with Largest() as largest:
        sums = fused.forward(x, y, scale, None, pairs, chunk_size=chunk)
        fused.backward(x, y, scale, None, pairs, sums, PairSums(*map(torch.ones_like, sums)), chunk_size=chunk)
    assert largest.elements == chunk * n


def test_compiles_as_one_graph():
    inputs, terms = problem(40, 16, torch.float32), weights(40, normalize=True).to(DEVICE)

    def loss(*inputs):
        return weighted_info_nce(*inputs, terms=terms, margin=0.1, backend="triton")

    expected = run(inputs, "triton", terms=terms, margin=0.1)
    found = torch.compile(loss, backend="aot_eager", fullgraph=True)(*inputs)
    for one, other in zip([found.detach(), *gradients(found, *inputs)], expected, strict=True):
        torch.testing.assert_close(one, other)


def test_says_what_is_missing():
    x = torch.eye(4, dtype=torch.float64, device=DEVICE)
    with pytest.raises(UnsupportedError, match=r"got features of torch.float64. Use backend 'auto'"):
        weighted_info_nce(x, x, 1.0, backend="triton")
    assert select_backend(torch.device(DEVICE), 9999, 9999)[0] == ("triton" if CUDA else "chunked")


def test_extra_texts():
    inputs = problem(21, 20, torch.float32)
    extra = features(19, 20, seed=1, dtype=torch.float32)[1].detach().to(DEVICE)
    found = []
    for backend, dtype in (("triton", torch.float32), ("chunked", torch.float64)):
        further = extra.to(dtype).requires_grad_()
        leaves = [*(tensor.detach().to(dtype).requires_grad_() for tensor in inputs), further]
        how = {"terms": weights(21, parts="it", normalize=True).to(DEVICE), "hardness": 0.5, "margin": 0.3}
        how |= {"text_ids": torch.arange(21).to(DEVICE), "extra_text_ids": torch.arange(10, 29).to(DEVICE)}
        loss = weighted_info_nce(*leaves[:4], extra_text_features=further, backend=backend, **how)
        found.append([loss.detach(), *gradients(loss, *leaves)])
    for one, truth in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-4, atol=1e-5)
