"""In which precision products of float32 are taken, by either way that torch has to say it, and how exact that is."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clip_negatives.losses.backends import one_tf32_product
from clip_negatives_plugins.kmeans import engines
from tests.info_nce import loss_of
from tests.losses.kernels.exactness import DEVICE, needs_triton, problem, run

newer = pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="a torch without the newer way")


@contextlib.contextmanager
def precision(value):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = value
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@newer
@pytest.mark.parametrize(("value", "one"), [("tf32", True), ("ieee", False)])
def test_the_newer_way_to_allow_tf32(value, one):
    with precision(value):
        assert one_tf32_product() == one


def test_the_older_way_to_allow_tf32():
    assert not one_tf32_product()
    torch.set_float32_matmul_precision("high")
    try:
        assert one_tf32_product()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not one_tf32_product()


@newer
@pytest.mark.parametrize("wanted", [False, True])
def test_kmeans_allows_tf32_and_puts_back_what_was(wanted):
    with precision("ieee" if wanted else "tf32"):
        before = torch.backends.cuda.matmul.fp32_precision
        with engines._tensor_cores(wanted):
            assert one_tf32_product() == wanted
        assert torch.backends.cuda.matmul.fp32_precision == before


def test_three_tf32_products_are_as_exact_as_one_of_float32():
    # As the kernels take them: the high parts of 10 bits, the low parts of 10 more, and all products but low with low.
    def high(tensor):
        return (tensor.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)

    x, y = F.normalize(torch.randn(2, 256, 512, generator=torch.Generator().manual_seed(0)), dim=2)
    parts = [(high(side), high(side - high(side))) for side in (x, y)]
    (x_high, x_low), (y_high, y_low) = parts
    exact = x.double() @ y.double().T
    # Products and sums in float64: what is left is the error of the parts.
    three = sum(one.double() @ other.double().T for one, other in ((x_low, y_high), (x_high, y_low), (x_high, y_high)))
    errors = [float((found.double() - exact).abs().max()) for found in (three, x @ y.T, x_high.double() @ y_high.double().T)]
    assert errors[0] < errors[1] < errors[2] / 100


class _Copies(TorchDispatchMode):
    """Keep what goes from the host to the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {each.device.type for each in args if isinstance(each, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.device.type == "meta" and devices == {"cpu"}:
            self.found.append(str(function))
        return result


@pytest.mark.parametrize("which", ["plain", "margin", "positive_rate", "hardness", "positive_weight"])
def test_numbers_are_not_copied_to_the_device_in_a_step(which):
    how = {"margin": 0.1, "positive_rate": torch.empty((), device="meta"), "hardness": 0.5, "positive_weight": 0.5}
    x, y, scale = (torch.empty(shape, device="meta") for shape in ((300, 8), (300, 8), ()))
    with _Copies() as copies:
        loss_of(x, y, scale, backend="torch", **({which: how[which]} if which in how else {}))
    assert copies.found == []


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="no GPU")
@pytest.mark.parametrize("backend", ["torch", "chunked", "triton"])
def test_nothing_waits_for_the_device(backend):
    how = {"margin": 0.1, "positive_rate": 0.1, "hardness": 0.5, "groups": torch.arange(40, device=DEVICE) // 2}
    inputs = problem(40, 16, torch.float32)
    run(inputs, backend, **how)  # kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(inputs, backend, **how)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@newer
@needs_triton[0]
def test_the_newer_way_does_not_stop_the_kernels():
    with precision("tf32"):
        loss, *_ = run(problem(9, 8, torch.float32), "triton")
    assert loss.isfinite()
